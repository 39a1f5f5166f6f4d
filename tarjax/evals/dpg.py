"""DPG-Bench (arXiv 2403.05135): its prompts, its sheets, and what its own program says of them.

ELLA's compute_dpg_bench.py asks mPLUG each question of dpg_bench.csv about each of the four tiles
of a sheet. It is read here, quirks and all:

  its first row of questions is never asked;
  a question whose parent was answered "no" counts as "no", in the order of the file, so that zeros
  go on to the children; the picture's score is the mean of its questions, DPG the mean of sheets;
  the categories take the answers of the last tile only, before any zeros;
  sheets that fail are left out in silence, so they are counted here.

  python -m tarjax.evals.dpg dpg-bench_results.txt --questions dpg_bench.csv --out dpg.json

takes the program's results file, and with it dpg-bench_results_detail.txt.
"""

import argparse
import ast
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tarjax.config import UserError, exit_code, revision, write_json
from tarjax.evals import intervals

VERSION = 1
TILES = 4
COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")


class Question(NamedTuple):
  """One row of dpg_bench.csv; `category` is the whole of it, as "entity - whole"."""

  parents: tuple[int, ...]
  category: str
  text: str


Questions = Mapping[str, Mapping[int, Question]]


def prompts(folder: Path) -> dict[str, str]:
  """{name of the file without .txt: prompt}, in order of their names."""
  files = sorted(folder.glob("*.txt"))
  if not files:
    raise UserError(f"{folder} has no prompts like *.txt")
  found = {file.stem: file.read_text().strip() for file in files}
  if empty := [name for name, text in found.items() if not text]:
    raise UserError(f"{folder}/{empty[0]}.txt is empty")
  return found


def sheet(tiles: Sequence[np.ndarray]) -> np.ndarray:
  """Four uint8[y x 3] -> uint8[2y 2x 3], row by row."""
  return np.concatenate([np.concatenate(tiles[i : i + 2], 1) for i in (0, 2)], 0)


def tile(sheet: np.ndarray, number: int) -> np.ndarray:
  """uint8[2y 2x 3] -> its number-th tile uint8[y x 3], as `sheet` has put them together."""
  y, x = sheet.shape[0] // 2, sheet.shape[1] // 2
  top, left = number // 2 * y, number % 2 * x
  return sheet[top : top + y, left : left + x]


def read_questions(path: Path) -> Questions:
  """{prompt's name: {number: question}}, without the file's first row, as the program has it."""
  found: dict[str, dict[int, Question]] = {}
  try:
    with open(path, newline="") as file:
      rows = list(csv.DictReader(file))
  except OSError as e:
    raise UserError(f"{path} cannot be read: {e.strerror}") from e
  if not rows or (missing := [c for c in COLUMNS if c not in rows[0]]):
    raise UserError(f"{path} has no column {missing[0]!r}" if rows else f"{path} has no rows")
  before = None
  for number, row in enumerate(rows[1:], 3):
    name = row["item_id"]
    if name != before:
      found[name] = {}  # the program forgets a name that comes again
    before = name
    try:
      parents = tuple(int(part) for part in row["dependency"].split(","))
      category = row["tuple"].split("(")[0].strip()
      text = row["question_natural_language"]
      found[name][int(row["proposition_id"])] = Question(parents, category, text)
    except (ValueError, AttributeError) as e:
      raise UserError(f"line {number} of {path} is no question: {e}") from e
  return found


def score(questions: Mapping[int, Question], tiles: Sequence[Mapping[int, bool]]) -> list[float]:
  """The score of each tile, from its answers."""
  found = []
  for answers in tiles:
    yes = {number: float(answers[number]) for number in questions}
    for number, question in questions.items():
      if any(parent and not yes[parent] for parent in question.parents):
        yes[number] = 0.0
    found.append(sum(yes.values()) / len(yes))
  return found


def summary(questions: Questions, answers: Mapping[str, Sequence[Mapping[int, bool]]]) -> dict:
  """{metric: value with its interval} of {prompt's name: answers of each tile}, in percent."""
  counts = []
  for name, tiles in answers.items():
    count: dict[str, float] = {"n": 1, "dpg": float(np.mean(score(questions[name], tiles)))}
    for number, question in questions[name].items():
      yes, l1 = float(tiles[-1][number]), question.category.split("-")[0].strip()
      for key in (l1, f"L2 {question.category}"):
        count[key] = count.get(key, 0.0) + yes
        count[f"{key} n"] = count.get(f"{key} n", 0.0) + 1
    counts.append(count)

  def metrics(sums):
    names = sorted(k for k in sums if not k.endswith(" n") and k not in ("n", "dpg"))
    parts = {k: 100 * intervals.ratio(sums[k], sums[f"{k} n"]) for k in names}
    return {"dpg": 100 * intervals.ratio(sums["dpg"], sums["n"])} | parts

  return intervals.score(counts, metrics)


def read_answers(path: Path, questions: Questions) -> dict[str, list[dict[int, bool]]]:
  """The program's _detail.txt: "image path, tile, question, answer" in each line.

  Raises:
    UserError: a line of another form, or of a question that is not asked; it is named.
  """
  asked: dict[str, dict[str, list[int]]] = {name: {} for name in questions}
  for name, group in questions.items():
    for i, question in group.items():
      asked[name].setdefault(question.text, []).append(i)
  found: dict[str, dict[tuple, dict[int, bool]]] = {}
  try:
    lines = path.read_text().splitlines()
  except OSError as e:
    raise UserError(f"{path} cannot be read: {e.strerror}") from e
  for number, line in enumerate(lines, 1):
    try:
      image, rest = line.split(", (", 1)
      tile, rest = rest.split("), ", 1)
      text, answer = rest.rsplit(", ", 1)
      name = Path(image).name.split(".")[0]
      place = ast.literal_eval(f"({tile})")
      tiles = found.setdefault(name, {}).setdefault(place, {})
      tiles.update(dict.fromkeys(asked[name][text], answer == "yes"))
    except (ValueError, SyntaxError, KeyError) as e:
      raise UserError(f"line {number} of {path} is no answer to a question: {e!r}") from e
  whole = {}
  for name, tiles in found.items():
    complete = [t for t in tiles.values() if t.keys() == questions[name].keys()]
    if len(complete) == len(tiles):  # otherwise the program failed there, and left the sheet out
      whole[name] = complete
  return whole


def read_result(path: Path) -> tuple[dict[str, float], float | None]:
  """The program's results: {prompt's name: score}, and the DPG-Bench score that it printed."""
  sheets, total = {}, None
  try:
    lines = path.read_text().splitlines()
  except OSError as e:
    raise UserError(f"{path} cannot be read: {e.strerror}") from e
  for line in lines:
    parts = line.split(", ")
    if line.startswith("DPG-Bench score:"):
      total = float(line.split(":")[1])
    elif len(parts) >= 3 and ".png" in parts[0]:
      sheets[Path(parts[0]).name.split(".")[0]] = float(parts[-1])
  if not sheets:
    raise UserError(f"{path} is no result of DPG-Bench: no line is of a sheet")
  return sheets, total


def arguments(argv: list[str]) -> argparse.Namespace:
  about = (__doc__ or "").splitlines()[0]
  parser = argparse.ArgumentParser(prog="tarjax.evals.dpg", description=about)
  parser.add_argument("results", help="dpg-bench_..._results.txt of ELLA's program")
  parser.add_argument("--questions", required=True, help="dpg_bench.csv")
  parser.add_argument("--out", required=True, help="JSON file to write")
  return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
  out, results = Path(args.out), Path(args.results)
  if not out.absolute().parent.is_dir():
    raise UserError(f"cannot write {out}: there is no folder {out.parent}")
  questions = read_questions(Path(args.questions))
  sheets, printed = read_result(results)
  answers = read_answers(results.with_name(f"{results.stem}_detail.txt"), questions)
  scores = summary(questions, answers)
  for name, value in sheets.items():  # what it wrote, against what its answers say
    if name in answers and abs(np.mean(score(questions[name], answers[name])) - value) > 1e-6:
      raise UserError(f"{results} and its details do not agree on {name}")
  missing = sorted(questions.keys() - answers.keys())
  made: dict[str, Any] = {"scorer": VERSION, "revision": revision(), "results": args.results}
  made |= {"printed": printed, "missing": missing}
  write_json(out, {"scores": scores, "prompts": len(answers), "provenance": made})
  for name, found in scores.items():
    print(f"{name:30}{found['value']:8.2f}  ({found['low']:.2f} to {found['high']:.2f})")
  if missing:
    print(f"not scored: {len(missing)} of {len(questions)} prompts, {missing[0]} among them")


def main(argv: list[str]) -> int:
  return exit_code(lambda: run(arguments(argv)))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
