"""CLIP score of pictures and their prompts, in a process of its own, for it needs PyTorch.

  python -m tarjax.evals.clip_score results.geneval --clip clip-vit-large-patch14 --out clip.json
  python -m tarjax.evals.clip_score results.dpg --prompts DATA/dpg_bench/prompts \\
      --clip clip-vit-large-patch14 --out clip.json

The folder is GenEval's, 00000/metadata.jsonl with a "prompt" and 00000/samples/0.png and so on; or,
with --prompts, DPG-Bench's, whose NAME.png is a sheet of four tiles for the prompt in NAME.txt. A
picture's score is 100 max(cos, 0) (arXiv 2104.08718 without its factor of 2.5), and the interval is
over prompts. Nothing is downloaded: --clip is a local folder. Scores are added to
clip.rows.jsonl, where --resume goes on.
"""

import argparse
import collections
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tarjax.config import UserError, exit_code, revision, write_json
from tarjax.data import transforms
from tarjax.evals import dpg, intervals
from tarjax.evals.answers import Answers

VERSION = 1


class Picture(NamedTuple):
  """A picture's name within the folder, its prompt, and what reads it as uint8[y x 3]."""

  name: str
  prompt: str
  read: Callable[[], np.ndarray]


def in_folders(folder: Path) -> Iterator[Picture]:
  """Pictures of GenEval's layout, in order of prompts and numbers."""
  for inside in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()):
    lines = inside / "metadata.jsonl"
    try:
      prompt = json.loads(lines.read_text().splitlines()[0])["prompt"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
      raise UserError(f"{lines} names no prompt: {e!r}") from e
    files = [f for f in inside.glob("samples/*.png") if f.stem.isdigit()]
    for file in sorted(files, key=lambda f: int(f.stem)):
      yield Picture(str(file.relative_to(folder)), prompt, lambda file=file: whole(file))


def in_sheets(folder: Path, prompts: Path) -> Iterator[Picture]:
  """Tiles of DPG-Bench's layout, in order of the prompts' names; prompts without a sheet are not
  among them.
  """
  for name, prompt in dpg.prompts(prompts).items():
    file = folder / f"{name}.png"
    for i in range(dpg.TILES if file.is_file() else 0):
      yield Picture(f"{file.name}#{i}", prompt, lambda file=file, i=i: dpg.tile(whole(file), i))


def whole(file: Path) -> np.ndarray:
  """uint8[y x 3] of a picture file; a UserError names a damaged one."""
  try:
    return transforms.to_rgb(file)
  except (OSError, ValueError) as e:
    raise UserError(f"{file} is not a whole picture: {e}") from e


def measure(
  found: list[Picture], clip: Any, kept: Answers, batch: int, say: Callable[[str], None]
) -> list[float]:
  """The score of each picture; those that `kept` has are not computed again.

  Args:
    clip: `similarities(images, texts)`, as `judges.Clip`.
  """
  known = [kept.get("clip", i, f"{p.name} {p.prompt}") for i, p in enumerate(found)]
  left = [i for i, score in enumerate(known) if score is None]
  for start in range(0, len(left), batch):
    part = left[start : start + batch]
    images = [Image.fromarray(found[i].read()) for i in part]
    values = clip.similarities(images, [found[i].prompt for i in part])
    rows = [
      (i, f"{found[i].name} {found[i].prompt}", repr(value))
      for i, value in zip(part, values, strict=True)
    ]
    kept.add("clip", rows)
    for i, value in zip(part, values, strict=True):
      known[i] = repr(value)
    say(f"{len(found) - len(left) + start + len(part)} of {len(found)} pictures")
  return [float(score or 0) for score in known]


def summary(found: list[Picture], values: list[float]) -> dict[str, dict[str, float]]:
  """{"clip_score": {"value", "low", "high"}}: the mean over pictures, resampled by prompts."""
  counts: dict[str, dict[str, float]] = collections.defaultdict(lambda: {"clip": 0.0, "n": 0.0})
  for picture, value in zip(found, values, strict=True):
    counts[picture.prompt]["clip"] += value
    counts[picture.prompt]["n"] += 1
  return intervals.score(list(counts.values()), lambda s: {"clip_score": s["clip"] / s["n"]})


def arguments(argv: list[str]) -> argparse.Namespace:
  about = (__doc__ or "").splitlines()[0]
  parser = argparse.ArgumentParser(prog="tarjax.evals.clip_score", description=about)
  parser.add_argument("folder", help="pictures, as `evaluate --tasks geneval,dpg` draws them")
  parser.add_argument("--clip", required=True, help="folder of a CLIP, as Hugging Face stores it")
  parser.add_argument("--prompts", help="folder with NAME.txt for each sheet NAME.png")
  parser.add_argument("--batch", type=int, default=64, help="pictures at a time")
  parser.add_argument("--resume", action="store_true", help="keep the scores that are there")
  parser.add_argument("--out", required=True, help="JSON file to write")
  return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
  out, folder = Path(args.out), Path(args.folder)
  if not out.absolute().parent.is_dir():
    raise UserError(f"cannot write {out}: there is no folder {out.parent}")
  if args.batch < 1:
    raise UserError(f"--batch must be at least 1, not {args.batch}")
  if not folder.is_dir():
    raise UserError(f"{folder} is not a folder")
  found = list(in_sheets(folder, Path(args.prompts)) if args.prompts else in_folders(folder))
  if not found:
    like = "NAME.png for NAME.txt of --prompts" if args.prompts else "00000/samples/0.png"
    raise UserError(f"{folder} has no pictures like {like}")
  from tarjax.evals import judges

  made = {"clip": str(args.clip), "scorer": VERSION}
  clip = judges.Clip(args.clip)
  kept = Answers(out.with_name(f"{out.stem}.rows.jsonl"), made, args.resume)
  values = measure(found, clip, kept, args.batch, print)
  kept.close()
  scores = summary(found, values)
  prompts = len({picture.prompt for picture in found})
  made |= {"revision": revision(), "pictures": str(folder)}
  write_json(
    out, {"scores": scores, "pictures": len(found), "prompts": prompts, "provenance": made}
  )
  score = scores["clip_score"]
  print(f"clip_score {score['value']:10.4g}  ({score['low']:.4g} to {score['high']:.4g})")
  print(f"{len(found)} pictures of {prompts} prompts: {out}")


def main(argv: list[str]) -> int:
  return exit_code(lambda: run(arguments(argv)))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
