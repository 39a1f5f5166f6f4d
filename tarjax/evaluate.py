"""Scores a model, prints the scores, and writes them with an optional report.

  python -m tarjax.evaluate --model runs/digits --tasks digits --out runs/digits/scores.json
      --report runs/digits/report.html
  python -m tarjax.evaluate --model runs/tar --tasks pope,mme,mmbench,seed,gqa,mmmu --data DATA
      --out results.json

  python -m tarjax.evaluate --model runs/tar --tasks geneval,dpg --data DATA --out results.json

  python -m tarjax.evaluate --model runs/tar --tasks reconstruction --data /data/imagenet_val
      --out results.json

  python -m tarjax.evaluate --report configs/ablations/scales.py --workdir runs/ablations/scales

Stages whose run directories lie in the model's folder enter the report of `digits` with their
curves, time and memory. The benchmarks are read from DATA and answered greedily at scale 1; their
answers are kept beside the results, in results.answers.jsonl, where --resume goes on. The pictures
of GenEval and DPG-Bench go to results.geneval and results.dpg, for their judges:
`tarjax.evals.geneval`, and ELLA's program, whose results `tarjax.evals.dpg` reads. --best_of N
keeps of N candidates for each picture the one that the model itself judges best.

For `reconstruction`, DATA is a folder of pictures, or NAME:PATH with any format of the README's
table; tokenizers are enough of a model, and --lpips adds LPIPS by imported weights. The work of all
tasks is shared by all devices. With --workdir, what launch/ablation.sh made of a table of the paper
is reported beside the paper's numbers.
"""

import argparse
import functools
import os
import resource
import sys
import time
from pathlib import Path

from tarjax.config import UserError, exit_code, finished, write_json
from tarjax.evals.answers import Answers
from tarjax.evals.asking import Evaluator
from tarjax.evals.benchmarks import BENCHMARKS
from tarjax.evals.tables import Table

STAGES = ("siglip2", "llm", "ta_tok", "vqvae", "encoded", "encoded_vq")
STAGES += ("ar_dtok", "mllm", "sft", "dc_ae", "dif_dtok")
PICTURES = ("geneval", "dpg")
RECONSTRUCTION = "reconstruction"
TASKS = ("digits", *BENCHMARKS, *PICTURES, RECONSTRUCTION)
SEEDS = "of each output, from sha256 of its number and its prompt"


def arguments(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog="tarjax.evaluate", description="Scores a model on tasks.")
  parser.add_argument("--model", help="folder with bundle.json")
  parser.add_argument("--tasks", default="digits", help=f"comma-separated, of {', '.join(TASKS)}")
  parser.add_argument("--out", help="JSON file to write")
  parser.add_argument("--report", help="HTML file to write; with --workdir, a table's page")
  parser.add_argument("--workdir", help="folder of a table of the paper")
  parser.add_argument("--batch", type=int, default=64, help="prompts at a time")
  parser.add_argument("--scale", type=int, help="of pictures: 1, 2 or 3; digits 2, benchmarks 1")
  parser.add_argument("--best_of", type=int, help="candidates for each picture (Self Reflect)")
  parser.add_argument("--judge_feed", default="ids", help="they are judged by ids or reencoded")
  digits = parser.add_argument_group("digits")
  digits.add_argument("--count", type=int, default=600, help="prompts, and questions")
  digits.add_argument("--seed", type=int, default=12345)
  digits.add_argument("--temperature", type=float, help="of the visual words")
  others = parser.add_argument_group("benchmarks")
  others.add_argument("--data", help="folder with copies of the data sets, lmms-lab/NAME in NAME")
  others.add_argument("--limit", type=int, default=0, help="only the first so many of each")
  others.add_argument("--detokenizer", default="ar", help="what paints: ar or dif")
  others.add_argument("--lpips", metavar="DIR", help="run of LPIPS, for pictures to reconstruct")
  others.add_argument("--resize", default="crop", help="of pictures to reconstruct, or squash")
  others.add_argument("--resume", action="store_true", help="keep the answers that are there")
  return parser.parse_args(argv)


def run(args: argparse.Namespace, began: float) -> None:
  """Checks what is cheap to check before anything is loaded."""
  if args.workdir:
    return table_of_paper(args)
  names = list(dict.fromkeys(args.tasks.split(",")))
  check(args, names)
  tables = {
    name: Table(BENCHMARKS[name], Path(args.data), args.limit)
    for name in names
    if name in BENCHMARKS
  }
  jobs = {name: jobs_of(args, name) for name in names if name in PICTURES}
  rebuilder = rebuilder_of(args) if RECONSTRUCTION in names else None
  from tarjax.devices import Devices
  from tarjax.evals import provenance  # imports jax
  from tarjax.pipeline import TarPipeline

  needed = ("vqvae",) if names == [RECONSTRUCTION] else None
  pipe = TarPipeline.load(args.model, args.batch, Devices.all(), needed)
  model = provenance.of_model(pipe)
  scores: dict = {}
  if "digits" in names:
    scores |= digits(args, pipe, began)
  if tables:
    scores["benchmarks"] = benchmarks(args, pipe, tables, model)
  if jobs:
    scores["pictures"] = pictures(args, pipe, jobs, model)
  if rebuilder:
    scores[RECONSTRUCTION] = reconstruction(args, pipe, rebuilder)
  scores["provenance"] = {"model": args.model} | model | provenance.of_code()
  write_json(Path(args.out), scores)
  print(f"scores: {args.out}")


def table_of_paper(args: argparse.Namespace) -> None:
  from tarjax.evals import table_report

  if not args.report:
    raise UserError("--workdir needs --report, a file of configs/ablations/")
  table_report.write(args.report, Path(args.workdir).absolute())


def check(args: argparse.Namespace, names: list[str]) -> None:
  """Raises UserError for what the command line alone shows to be wrong."""
  for flag in ("model", "out"):
    if not getattr(args, flag):
      raise UserError(f"--{flag} is missing")
  for task in names:
    if task not in TASKS:
      raise UserError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
  if args.count < 12:
    raise UserError(f"--count must be at least 12, two prompts per category, not {args.count}")
  if args.scale not in (None, 1, 2, 3):
    raise UserError(f"scale must be 1, 2 or 3, not {args.scale}")
  if args.detokenizer not in ("ar", "dif"):
    raise UserError(f"--detokenizer must be ar or dif, not {args.detokenizer}")
  if args.judge_feed not in ("ids", "reencoded"):
    raise UserError(f"--judge_feed must be ids or reencoded, not {args.judge_feed}")
  for flag, least in (("seed", 0), ("limit", 0), ("batch", 1), ("best_of", 1)):
    if getattr(args, flag) is not None and getattr(args, flag) < least:
      wrong = f"be at least {least}" if least else "not be negative"
      raise UserError(f"--{flag} must {wrong}, got {getattr(args, flag)}")
  if names != ["digits"] and not args.data:
    raise UserError(f"--tasks {args.tasks} needs --data, the folder of the data sets")
  if RECONSTRUCTION in names and not {*names} <= {RECONSTRUCTION, "digits"}:
    raise UserError("--data of reconstruction are pictures: run the other tasks apart from it")
  if args.report and "digits" not in names:
    raise UserError("--report shows the digits, which are not among the tasks")
  for path in filter(None, (args.out, args.report)):
    if not Path(path).absolute().parent.is_dir():
      raise UserError(f"cannot write {path}: there is no folder {Path(path).parent}")


def digits(args: argparse.Namespace, pipe, began: float) -> dict:
  """Scores on the composed digits, printed, and their report."""
  from tarjax.evals import digits
  from tarjax.evals.digits_scorer import Scorer

  evaluator = digits.Evaluator(
    Scorer(),
    count=args.count,
    seed=args.seed,
    scale=scale_of(args, pipe, 2),
    temperature=args.temperature,
    draw=drawer(args, pipe),
  )
  scores = {"settings": settings(args, pipe)} | measure(evaluator, pipe)
  scores["stages"] = stages(Path(args.model)) | {"evaluate": spent(began, args.count)}
  print(table(scores))
  if args.report:
    from tarjax.evals import report

    runs = {name: report.read_run(Path(args.model) / name) for name in STAGES}
    page = report.build(scores, runs, evaluator.drawings, evaluator.answers, evaluator.rebuilt)
    write(Path(args.report), page)
    print(f"report: {args.report}")
  return scores


def scale_of(args: argparse.Namespace, pipe, default: int) -> int | None:
  """The pool scale that is asked for or else the default; None where there are no scales."""
  from tarjax.bundle import pool_scale

  return pool_scale(pipe.bundle, args.scale, default)


def settings(args: argparse.Namespace, pipe) -> dict:
  """What the scores of the digits depend on besides the weights."""
  drawn = pipe.bundle["sampling"]["image"] | {"scale": scale_of(args, pipe, 2)}
  if args.temperature is not None:
    drawn["temperature"] = args.temperature
  drawn |= chosen_by(args)
  return {"prompts": args.count, "questions": args.count, "seed": args.seed} | drawn


def drawer(args: argparse.Namespace, pipe):
  """What keeps the best of several by the model's own judgement, or None."""
  if args.best_of is None:
    return None
  from tarjax import self_reflect

  return functools.partial(self_reflect.best_of, pipe, n=args.best_of, feed=args.judge_feed)


def chosen_by(args: argparse.Namespace) -> dict:
  """What --best_of adds to what pictures depend on."""
  from tarjax import self_reflect

  return self_reflect.settings(args.best_of, args.judge_feed) if args.best_of else {}


def painter(args: argparse.Namespace) -> dict:
  """The de-tokenizer, where it is not the usual one."""
  return {} if args.detokenizer == "ar" else {"detokenizer": args.detokenizer}


def benchmarks(args: argparse.Namespace, pipe, tables: dict[str, Table], model: dict) -> dict:
  """{name: scores with intervals, and what they depend on}, printed."""
  sampler = pipe.bundle["sampling"].get("text", {}) | {"temperature": 0.0}
  scale = scale_of(args, pipe, 1)
  how = {"sampler": sampler | {"scale": scale}, "seeds": SEEDS}
  out = Path(args.out)
  kept = Answers(out.with_name(f"{out.stem}.answers.jsonl"), model | how, args.resume)
  describe = functools.partial(pipe.describe, scale=scale, temperature=0.0)
  found = {}
  for name, rows in tables.items():
    evaluator = Evaluator(rows, kept, args.batch, print)
    scores = evaluator.score(evaluator.answer(describe))
    facts = {"questions": len(rows), "limit": args.limit, "data": str(rows.folder)}
    versions = {"scorer": rows.benchmark.version, "max_new": rows.benchmark.max_new}
    found[name] = {"scores": scores} | facts | versions | how
    for metric, score in scores.items():
      ends = f"{score['low']:.4g} to {score['high']:.4g}"
      print(f"{name + '/' + metric:40}{score['value']:10.4g}  ({ends})")
  kept.close()
  return found


def jobs_of(args: argparse.Namespace, name: str) -> list:
  from tarjax.evals import drawing

  jobs = drawing.JOBS[name](Path(args.data), folder_of(args, name))
  return jobs[: args.limit] if args.limit else jobs


def folder_of(args: argparse.Namespace, name: str) -> Path:
  """Beside results.json, results.geneval."""
  return Path(args.out).with_suffix(f".{name}")


def pictures(args: argparse.Namespace, pipe, jobs: dict[str, list], model: dict) -> dict:
  """Draws; {name: where, and what the pictures depend on}."""
  from tarjax.evals import drawing

  sampling, scale = pipe.bundle["sampling"], scale_of(args, pipe, 1)
  sampler = {"image": sampling["image"], "pixels": sampling.get("pixels", {}), "scale": scale}
  how, found = {"sampler": sampler, "seeds": SEEDS} | chosen_by(args) | painter(args), {}
  generate = functools.partial(drawer(args, pipe) or pipe.generate, scale=scale, **painter(args))
  for name, todo in jobs.items():
    folder = folder_of(args, name)
    drawing.claim(folder, model | how, args.resume)
    drawing.draw(todo, generate, args.batch, lambda text, name=name: print(f"{name}: {text}"))
    found[name] = {"prompts": len(todo), "folder": str(folder), "limit": args.limit} | how
  return found


def rebuilder_of(args: argparse.Namespace):
  from tarjax.evals import pictures, reconstruction

  source = reconstruction.make_source(args.data)
  how = {"count": args.limit, "batch": args.batch, "resize": args.resize, "say": print}
  if args.scale:
    how["scales"] = (args.scale,)
  if args.lpips:
    how["distances"] = reconstruction.DISTANCES | {"lpips": pictures.make_lpips(args.lpips)}
  return reconstruction.Evaluator(source, **how)


def reconstruction(args: argparse.Namespace, pipe, evaluator) -> dict:
  """Distances and use of codes, and what they depend on, printed."""
  scores = evaluator.score(pipe)
  for name, score in scores.items():
    print(f"{name:40}{score['value']:10.4g}")
  facts = {"pictures": evaluator.count - evaluator.damaged, "damaged": evaluator.damaged}
  facts |= {"data": args.data, "limit": args.limit, "resize": args.resize, "lpips": args.lpips}
  return {"scores": scores} | facts | {"sampler": pipe.bundle["sampling"].get("pixels", {})}


def measure(evaluator, pipe) -> dict:
  """{"a/b": value} pairs as they come -> {"a": {"b": value}}."""
  scores: dict = {}
  for name, value in evaluator.run(pipe):
    *groups, last = name.split("/")
    group = scores
    for key in groups:
      group = group.setdefault(key, {})
    group[last] = value
  return scores


def stages(root: Path) -> dict[str, dict]:
  """{stage: {"seconds", "steps", "peak_gb"}} of the finished runs in a folder."""
  found = {name: finished(root / name) for name in STAGES}
  keys = ("seconds", "steps", "peak_gb")
  return {name: {k: done[k] for k in keys if k in done} for name, done in found.items() if done}


def spent(began: float, count: int) -> dict:
  """The evaluation as a stage of its own: its steps are prompts."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in kB
  return {"seconds": round(time.time() - began, 1), "steps": count, "peak_gb": round(peak, 3)}


def table(scores: dict) -> str:
  """Scores of both directions, with ceiling and chance, for the terminal."""
  lines = [f"{'':28}{'score':>8}{'ceiling':>9}{'chance':>8}"]
  for group in ("t2i", "i2t"):
    for name, value in scores[group].items():
      bounds = [scores.get(word, {}).get(group, {}).get(name) for word in ("ceiling", "chance")]
      cells = ["" if b is None else f"{b:.3f}" for b in bounds]
      lines.append(f"{group + '/' + name:28}{value:8.3f}{cells[0]:>9}{cells[1]:>8}")
  for name, value in scores.get("ta_tok", {}).items():
    if not isinstance(value, dict):
      lines.append(f"{'ta_tok/' + name:28}{value:8.3f}")
  return "\n".join(lines)


def write(path: Path, text: str) -> None:
  """Atomic, so that an interrupted evaluation leaves no half page."""
  new = path.with_name(path.name + ".new")
  new.write_text(text)
  os.replace(new, path)


def main(argv: list[str], began: float) -> int:
  return exit_code(lambda: run(arguments(argv), began))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:], time.time()))
