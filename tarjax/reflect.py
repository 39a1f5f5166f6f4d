r"""Builds judgement data for Self Reflect: pictures with "does it match the prompt?", yes or no.

  python -m tarjax.reflect --model runs/digits --prompts digits --count 1000 --judge rules \
      --out runs/digits/reflect
  python -m tarjax.reflect --model runs/tar --prompts geneval-style,dpg-style --count 20000 \
      --judge endpoint --endpoint http://host:8000/v1 --judge_model Qwen2.5-VL-7B-Instruct \
      --exclude evaluation_metadata.jsonl --exclude dpg_bench/prompts --out runs/tar/reflect

Prompts are drawn in a style, or read from a file; the model draws its candidates into
OUT/candidates, in GenEval's folders. --pictures names such folders that another generator filled
from OUT/prompts.jsonl, which is all that is written when neither it nor --model is given. Without
--judge nothing is judged yet. Rules are the scorer's on digits; for other prompts they are the
verdicts of `tarjax.evals.geneval` (or the official program's) on these folders, given as --rows.
The key of an endpoint is read from the environment, TARJAX_JUDGE_KEY.

OUT/data gets as many yes as no of each category of prompts, so that neither the answer nor the kind
of prompt says which it is. Encode it like any other pictures, and mix it in as
configs/digits/sft_reflect.py does. Run the command again after an interruption: pictures that are
drawn and answers that were given are kept, the latter in OUT/judgements.jsonl.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tarjax.config import UserError, exit_code, revision, write_json
from tarjax.data import sources
from tarjax.data.fields import MATCHES
from tarjax.evals import drawing, judgements, prompts
from tarjax.evals.endpoint import KEY, Endpoint
from tarjax.evals.judgements import Candidate

PER_SHARD = 2048
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def arguments(argv: list[str]) -> argparse.Namespace:
  about = (__doc__ or "").splitlines()[0]
  parser = argparse.ArgumentParser(prog="tarjax.reflect", description=about)
  parser.add_argument("--prompts", help=f"of {', '.join(prompts.STYLES)}, comma-separated; or FILE")
  parser.add_argument("--count", type=int, default=1000, help="prompts to draw in a style")
  parser.add_argument("--seed", type=int, default=0, help="of the prompts")
  parser.add_argument("--exclude", action="append", default=[], help="file of prompts to keep off")
  parser.add_argument("--model", help="folder with bundle.json, which draws")
  parser.add_argument("--candidates", type=int, default=4, help="pictures of a prompt")
  parser.add_argument("--scale", type=int, help="of pictures: 1, 2 or 3")
  parser.add_argument("--pictures", help="folders of pictures, instead of --model and --prompts")
  parser.add_argument("--judge", help="rules or endpoint; without it nothing is judged")
  parser.add_argument("--rows", help="verdicts of GenEval's rules on the pictures")
  parser.add_argument("--endpoint", help="address of an OpenAI-compatible API")
  parser.add_argument("--judge_model", help="the judge's name there")
  parser.add_argument("--parallel", type=int, default=8, help="questions at a time")
  parser.add_argument("--out", required=True, help="folder to write")
  return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
  """Raises UserError for what the command line alone shows to be wrong."""
  if bool(args.prompts) == bool(args.pictures):
    raise UserError("give either --prompts or --pictures")
  if args.pictures and args.model:
    raise UserError("--pictures are there already: leave out --model")
  for flag, least in (("count", 1), ("candidates", 1), ("parallel", 1), ("seed", 0)):
    if getattr(args, flag) < least:
      raise UserError(f"--{flag} must be at least {least}, not {getattr(args, flag)}")
  if args.scale not in (None, 1, 2, 3):
    raise UserError(f"scale must be 1, 2 or 3, not {args.scale}")
  if args.judge not in (None, "rules", "endpoint"):
    raise UserError(f"--judge must be rules or endpoint, not {args.judge}")
  if args.judge == "endpoint" and not (args.endpoint and args.judge_model):
    raise UserError("--judge endpoint needs --endpoint and --judge_model")
  if args.judge and not (args.model or args.pictures):
    raise UserError("--judge needs pictures: give --model or --pictures")
  if not Path(args.out).absolute().parent.is_dir():
    raise UserError(f"cannot write {args.out}: there is no folder {Path(args.out).parent}")


def run(args: argparse.Namespace) -> None:
  check(args)
  out = Path(args.out)
  excluded = prompts.Excluded([Path(file) for file in args.exclude])
  if args.pictures:
    found, passed = pictures(Path(args.pictures), excluded)
  else:
    wanted, passed = chosen(args, excluded)
    out.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in wanted)
    (out / "prompts.jsonl").write_text(text)
    print(f"{len(wanted)} prompts, {passed} excluded: {out / 'prompts.jsonl'}")
    if not args.model:
      return
    found = drawn(args, wanted)
  print(f"{len(found)} pictures of {len({c.wanted['prompt'] for c in found})} prompts")
  if not args.judge:
    return
  out.mkdir(exist_ok=True)
  if args.judge == "endpoint":
    judge = Endpoint(args.endpoint, args.judge_model, os.environ.get(KEY, ""))
    verdicts, how = judgements.by_endpoint(judge, found, out, args.parallel)
  elif args.rows:
    verdicts, how = judgements.by_rows(Path(args.rows), found)
  else:
    verdicts, how = judgements.by_digits(found, out)
  summary = build(out, found, verdicts, how) | {"excluded": passed}
  write_json(out / "summary.json", summary)
  print(f"{summary['kept']} records, half of them yes: {out / 'data'}")


def chosen(args: argparse.Namespace, excluded) -> tuple[list[dict[str, Any]], int]:
  """Prompts, and how many were excluded."""
  styles = args.prompts.split(",")
  if all(style in prompts.STYLES for style in styles):
    return prompts.draw_all(styles, args.count, args.seed, excluded)
  if not Path(args.prompts).exists():
    raise UserError(f"--prompts {args.prompts} is no file, nor of {', '.join(prompts.STYLES)}")
  rows = prompts.read(Path(args.prompts))
  kept = list({row["prompt"]: row for row in rows if not excluded.has(row["prompt"])}.values())
  if not kept:
    raise UserError(f"all prompts of {args.prompts} are excluded")
  return kept, sum(excluded.has(row["prompt"]) for row in rows)


def drawn(args: argparse.Namespace, wanted: Sequence[dict[str, Any]]) -> list[Candidate]:
  """The model's candidates, drawn where they are not there yet."""
  from tarjax.evals import provenance  # imports jax
  from tarjax.pipeline import TarPipeline

  folder = Path(args.out) / "candidates"
  pipe = TarPipeline.load(args.model)
  sampler = pipe.bundle["sampling"] | ({"scale": args.scale} if args.scale else {})
  how = {"sampler": sampler, "each": args.candidates}
  drawing.claim(folder, provenance.of_model(pipe) | how, resume=True)
  for inside, row in ((folder / f"{number:05d}", row) for number, row in enumerate(wanted)):
    there = inside / "metadata.jsonl"
    if there.is_file() and prompts.read(there)[0]["prompt"] != row["prompt"]:
      raise UserError(f"{inside} is of another prompt than {row['prompt']!r}: give another --out")
  jobs = drawing.layout(folder, wanted, args.candidates)

  def generate(texts, seeds):
    return pipe.generate(texts, seeds=seeds, scale=args.scale)

  drawing.draw(jobs, generate, pipe.batch, print, args.candidates)
  return [
    Candidate(str(file.relative_to(folder)), file, row)
    for job, row in zip(jobs, wanted, strict=True)
    for file in job.files
  ]


def pictures(folder: Path, excluded) -> tuple[list[Candidate], int]:
  """Pictures in GenEval's folders, and how many of their prompts are excluded."""
  if not folder.is_dir():
    raise UserError(f"--pictures {folder} is not a folder")
  found, passed = [], 0
  for inside in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()):
    row = prompts.read(inside / "metadata.jsonl")[0]
    if excluded.has(row["prompt"]):
      passed += 1
      continue
    files = sorted(f for f in inside.glob("samples/*") if f.suffix.lower() in SUFFIXES)
    found += [Candidate(str(f.relative_to(folder)), f, row) for f in files]
  if not found:
    raise UserError(f"{folder} has no pictures like 00000/samples/0.png to judge")
  return found, passed


def build(
  out: Path,
  found: Sequence[Candidate],
  verdicts: Mapping[str, bool | None],
  how: dict[str, Any],
) -> dict[str, Any]:
  """Writes OUT/data; -> counts."""
  counts: dict[str, Counter] = {}
  for one in found:
    said = {True: "yes", False: "no", None: "neither"}[verdicts[one.name]]
    counts.setdefault(one.wanted["tag"], Counter())[said] += 1
  kept = balanced(found, verdicts)
  if not kept:
    raise UserError(f"no category has both yes and no among {len(found)} judged pictures: {counts}")
  meta: dict[str, Any] = {"made_by": "tarjax.reflect", "question": MATCHES} | how
  sources.write_records(out / "data", records(kept, verdicts), meta=meta, per_shard=PER_SHARD)
  total = sum(counts.values(), Counter())
  return {
    "pictures": len(found),
    "prompts": len({one.wanted["prompt"] for one in found}),
    "judged": {word: total[word] for word in ("yes", "no", "neither")},
    "kept": len(kept),
    "categories": {tag: dict(count) for tag, count in sorted(counts.items())},
    "revision": revision(),
  } | meta


def balanced(found: Sequence[Candidate], verdicts: Mapping[str, bool | None]) -> list[Candidate]:
  """As many yes as no of each category, those whose names hash lowest, in the order they came."""
  groups: dict[tuple[str, bool], list[Candidate]] = {}
  for one in sorted(found, key=lambda c: hashlib.sha256(c.name.encode()).digest()):
    if (said := verdicts[one.name]) is not None:
      groups.setdefault((one.wanted["tag"], said), []).append(one)
  chosen = set()
  for (tag, said), group in groups.items():
    chosen |= {one.name for one in group[: len(groups.get((tag, not said), ()))]}
  return [one for one in found if one.name in chosen]


def records(kept: Sequence[Candidate], verdicts: Mapping[str, bool | None]) -> Iterator[dict]:
  """Records in the general format; pictures as they lie on disk."""
  for one in kept:
    turns = [(f"<image>\n{one.question}", "human"), ("Yes" if verdicts[one.name] else "No", "gpt")]
    yield {
      "id": f"reflect/{one.name}",
      "source": "reflect",
      "task": "selfreflect",
      "prompt": one.wanted["prompt"],
      "conversations": [{"from": role, "value": text} for text, role in turns],
      "images": [one.file.read_bytes()],
    }


def main(argv: list[str]) -> int:
  return exit_code(lambda: run(arguments(argv)))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
