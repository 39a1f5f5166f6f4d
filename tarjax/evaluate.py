"""Scores a model, prints the scores, and writes them with an optional report.

  python -m tarjax.evaluate --model runs/digits --tasks digits --out runs/digits/scores.json
      --report runs/digits/report.html

Stages whose run directories lie in the model's folder enter the report with their curves, time and
memory.
"""

import argparse
import os
import resource
import sys
import time
from pathlib import Path

from tarjax.config import UserError, finished, write_json

STAGES = ("siglip2", "llm", "ta_tok", "vqvae", "encoded", "ar_dtok", "mllm", "sft")
STAGES += ("dc_ae", "dif_dtok")
TASKS = ("digits",)


def arguments(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog="tarjax.evaluate", description="Scores a model on tasks.")
  parser.add_argument("--model", required=True, help="folder with bundle.json")
  parser.add_argument("--tasks", default="digits", help=f"comma-separated, of {', '.join(TASKS)}")
  parser.add_argument("--out", required=True, help="JSON file to write")
  parser.add_argument("--report", help="HTML file to write")
  parser.add_argument("--count", type=int, default=600, help="prompts, and questions")
  parser.add_argument("--seed", type=int, default=12345)
  parser.add_argument("--scale", type=int, default=2, help="of the visual words drawn: 1, 2 or 3")
  parser.add_argument("--temperature", type=float, help="of the visual words")
  return parser.parse_args(argv)


def run(args: argparse.Namespace, began: float) -> None:
  """Checks what is cheap to check before anything is loaded."""
  for task in args.tasks.split(","):
    if task not in TASKS:
      raise UserError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
  if args.count < 12:
    raise UserError(f"--count must be at least 12, two prompts per category, not {args.count}")
  if args.seed < 0:
    raise UserError(f"--seed must not be negative, got {args.seed}")
  if args.scale not in (1, 2, 3):
    raise UserError(f"scale must be 1, 2 or 3, not {args.scale}")
  for path in filter(None, (args.out, args.report)):
    if not Path(path).absolute().parent.is_dir():
      raise UserError(f"cannot write {path}: there is no folder {Path(path).parent}")
  from tarjax.pipeline import TarPipeline

  pipe = TarPipeline.load(args.model)
  from tarjax.evals import digits
  from tarjax.evals.digits_scorer import Scorer

  evaluator = digits.Evaluator(
    Scorer(),
    count=args.count,
    seed=args.seed,
    scale=args.scale,
    temperature=args.temperature,
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
  write_json(Path(args.out), scores)
  print(f"scores: {args.out}")


def settings(args: argparse.Namespace, pipe) -> dict:
  """What the scores depend on besides the weights."""
  drawn = pipe.bundle["sampling"]["image"] | {"scale": args.scale}
  if args.temperature is not None:
    drawn["temperature"] = args.temperature
  return {"prompts": args.count, "questions": args.count, "seed": args.seed} | drawn


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
  for name, value in scores["ta_tok"].items():
    if not isinstance(value, dict):
      lines.append(f"{'ta_tok/' + name:28}{value:8.3f}")
  return "\n".join(lines)


def write(path: Path, text: str) -> None:
  """Atomic, so that an interrupted evaluation leaves no half page."""
  new = path.with_name(path.name + ".new")
  new.write_text(text)
  os.replace(new, path)


def main(argv: list[str], began: float) -> int:
  try:
    run(arguments(argv), began)
  except (UserError, ValueError, OSError) as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:], time.time()))
