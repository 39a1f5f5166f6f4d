"""Judges pictures in GenEval's folders, in a process of its own, for it needs PyTorch.

  python -m tarjax.evals.geneval results.geneval --detector mask2former-swin-small-coco-instance \\
      --clip clip-vit-large-patch14 --out geneval.json

FOLDER/00000/metadata.jsonl is a prompt's line of evaluation_metadata.jsonl, and
FOLDER/00000/samples/0.png and so on are its pictures. Each verdict is added to geneval.rows.jsonl,
in the official program's form, where --resume goes on. With --rows, verdicts that are there (the
official results.jsonl) are summed up and nothing is judged.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tarjax.config import UserError, exit_code, revision, write_json
from tarjax.evals import geneval_rules as rules

LINES = "evaluation_metadata.jsonl"


def read_metadata(path: Path) -> list[dict[str, Any]]:
  """Lines of a metadata file, checked.

  Raises:
    UserError: no such file, or a line that is no prompt of GenEval; it is named.
  """
  try:
    lines = path.read_text().splitlines()
  except OSError as e:
    raise UserError(f"{path} cannot be read: {e.strerror}") from e
  found = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      ok = row["tag"] in rules.TAGS and isinstance(row["prompt"], str) and bool(row["include"])
      for clause in (*row["include"], *row.get("exclude", ())):
        ok &= isinstance(clause["class"], str) and isinstance(clause["count"], int)
    except (ValueError, KeyError, TypeError) as e:
      raise UserError(f"line {number} of {path} is no prompt of GenEval: {e!r}") from e
    if not ok:
      raise UserError(f"line {number} of {path} is no prompt of GenEval: {line[:80]}")
    found.append(row)
  if not found:
    raise UserError(f"{path} has no prompts")
  return found


def pictures(folder: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
  """(name within the folder, file, metadata of its prompt) of each picture, in order."""
  if not folder.is_dir():
    raise UserError(f"{folder} is not a folder")
  for inside in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()):
    wanted = read_metadata(inside / "metadata.jsonl")[0]
    files = [f for f in inside.glob("samples/*.png") if re.fullmatch(r"\d+", f.stem)]
    for file in sorted(files, key=lambda f: int(f.stem)):
      yield str(file.relative_to(folder)), file, wanted


def verdict(name: str, file: Path, wanted: dict[str, Any], detector, clip) -> dict[str, Any]:
  """A line of the official results, and the CLIP score."""
  from PIL import Image, ImageOps

  try:
    with Image.open(file) as opened:
      image = ImageOps.exif_transpose(opened).convert("RGB")
  except (OSError, ValueError) as e:
    raise UserError(f"{file} is not a whole picture: {e}") from e
  found = rules.keep(detector.find(image), wanted["tag"])
  right, reason = rules.judge(found, wanted, lambda c, things: clip.paint(image, c, things))
  boxes = {c: [[*t.box, t.score] for t in things] for c, things in found.items()}
  return {
    "filename": name,
    "tag": wanted["tag"],
    "prompt": wanted["prompt"],
    "correct": right,
    "reason": reason,
    "metadata": json.dumps(wanted),
    "details": json.dumps(boxes),
    "clip_score": clip.similarity(image, wanted["prompt"]),
  }


def read_rows(path: Path, whole: bool) -> list[dict[str, Any]]:
  """Verdicts in a file; a last line that was cut off is removed unless the file must be `whole`."""
  if not path.is_file():
    raise UserError(f"{path} does not exist")
  text = path.read_bytes()
  end = len(text) if whole else text.rfind(b"\n") + 1
  if end < len(text):
    os.truncate(path, end)
  try:
    rows = [json.loads(line) for line in text[:end].splitlines()]
    rules.summary(rows)
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(f"{path} does not hold verdicts of GenEval: {e!r}") from e
  return rows


def arguments(argv: list[str]) -> argparse.Namespace:
  about = (__doc__ or "").splitlines()[0]
  parser = argparse.ArgumentParser(prog="tarjax.evals.geneval", description=about)
  parser.add_argument(
    "folder", nargs="?", help="pictures, as `evaluate --tasks geneval` draws them"
  )
  parser.add_argument("--detector", help="folder of mask2former-swin-small-coco-instance")
  parser.add_argument("--clip", help="folder of clip-vit-large-patch14")
  parser.add_argument("--rows", help="sum up these verdicts instead")
  parser.add_argument("--resume", action="store_true", help="keep the verdicts that are there")
  parser.add_argument("--out", required=True, help="JSON file to write")
  return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
  out = Path(args.out)
  if not out.absolute().parent.is_dir():
    raise UserError(f"cannot write {out}: there is no folder {out.parent}")
  if args.rows:
    rows, made = read_rows(Path(args.rows), whole=True), {"rows": args.rows}
  else:
    rows, made = judged(args, out.with_name(f"{out.stem}.rows.jsonl"))
  scores = rules.summary(rows)
  if seen := [row["clip_score"] for row in rows if "clip_score" in row]:
    counts = [{"clip": value, "n": 1} for value in seen]
    scores |= rules.intervals.score(counts, lambda s: {"clip_score": s["clip"] / s["n"]})
  made |= {"scorer": rules.VERSION, "revision": revision()}
  prompts = len({row["prompt"] for row in rows})
  write_json(out, {"scores": scores, "pictures": len(rows), "prompts": prompts, "provenance": made})
  for name, score in scores.items():
    print(f"{name:20}{score['value']:10.4g}  ({score['low']:.4g} to {score['high']:.4g})")
  print(f"{len(rows)} pictures of {prompts} prompts: {out}")


def judged(args: argparse.Namespace, path: Path) -> tuple[list[dict], dict[str, Any]]:
  """Verdicts on all pictures, and what they depend on."""
  if not (args.folder and args.detector and args.clip):
    raise UserError("give the folder of pictures, --detector and --clip, or --rows")
  found = list(pictures(Path(args.folder)))
  if not found:
    raise UserError(f"{args.folder} has no pictures like 00000/samples/0.png")
  from tarjax.evals import judges

  for _, _, wanted in found:
    for clause in (*wanted["include"], *wanted.get("exclude", ())):
      if clause["class"] not in judges.NAMES:
        raise UserError(f"the detector knows no {clause['class']!r}, of {wanted['prompt']!r}")
  rows = read_rows(path, whole=False) if args.resume and path.is_file() else []
  done = {row["filename"] for row in rows}
  detector, clip = judges.Detector(args.detector), judges.Clip(args.clip)
  with open(path, "a" if done else "w") as file:
    for name, picture, wanted in found:
      if name in done:
        continue
      rows.append(verdict(name, picture, wanted, detector, clip))
      file.write(json.dumps(rows[-1]) + "\n")
      file.flush()
  there = {name for name, _, _ in found}
  made = {"detector": str(args.detector), "clip": str(args.clip), "rows": str(path)}
  return [row for row in rows if row["filename"] in there], made


def main(argv: list[str]) -> int:
  return exit_code(lambda: run(arguments(argv)))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
