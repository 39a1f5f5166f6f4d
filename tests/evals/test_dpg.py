"""DPG-Bench: the official program's rules and files, on small ones."""

import csv
import json

import numpy as np
import pytest

from tarjax.config import UserError
from tarjax.evals import dpg

ROWS = [  # item, number, parents, tuple, question
  ("a", 1, "0", "entity - whole (cat)", "Is there a cat?"),  # the row that is never asked
  ("a", 2, "0", "entity - whole (dog)", "Is there a dog, or two?"),
  ("a", 3, "2", "attribute - color (dog, red)", "Is the dog red?"),
  ("a", 4, "3, 0", "relation - spatial (dog, cat, on)", "Is the red dog on it?"),
  ("b", 1, "0", "global - (photo)", "Is it a photo?"),
  ("b", 2, "0", "other - text (x)", "Is it a photo?"),
]


def write_questions(path, rows=tuple(ROWS), columns=dpg.COLUMNS):
  with open(path, "w", newline="") as file:
    csv.writer(file).writerows([columns, *rows])
  return path


@pytest.fixture
def questions(tmp_path):
  return dpg.read_questions(write_questions(tmp_path / "dpg_bench.csv"))


def test_questions_lack_the_first_row(questions):
  assert list(questions) == ["a", "b"] and list(questions["a"]) == [2, 3, 4]
  assert questions["a"][4] == dpg.Question((3, 0), "relation - spatial", "Is the red dog on it?")
  assert questions["b"][1].category == "global -"


def test_zeros_go_on_to_the_children(questions):
  tiles = [{2: True, 3: True, 4: True}, {2: False, 3: True, 4: True}, {2: True, 3: False, 4: True}]
  assert dpg.score(questions["a"], tiles) == pytest.approx([1, 0, 1 / 3])


def test_a_parent_that_comes_later_is_not_yet_zeroed(tmp_path):
  rows = [ROWS[0], ("a", 1, "2", "x", "p?"), ("a", 2, "3", "y", "q?"), ("a", 3, "0", "z", "r?")]
  group = dpg.read_questions(write_questions(tmp_path / "q.csv", rows))["a"]
  assert dpg.score(group, [{1: True, 2: True, 3: False}]) == pytest.approx([1 / 3])


def test_categories_take_the_last_tile_before_zeros(questions):
  answers = {
    "a": [{2: True, 3: True, 4: True}] * 3 + [{2: False, 3: True, 4: False}],
    "b": [{1: True, 2: False}] * 4,
  }
  found = {name: s["value"] for name, s in dpg.summary(questions, answers).items()}
  assert found["dpg"] == pytest.approx(100 * (0.75 + 0.5) / 2)
  assert found["entity"] == 0 and found["attribute"] == 100 and found["relation"] == 0
  assert found["global"] == 100 and found["other"] == found["L2 other - text"] == 0


def write_results(tmp_path, sheets=("a", "b"), lose=None):
  """The two files of the program, with answers "yes" but for the last tile's first question."""
  questions = dpg.read_questions(write_questions(tmp_path / "dpg_bench.csv"))
  detail, result = [], []
  for name in sheets:
    tiles = []
    for k in range(4):
      place = (k % 2 * 512, k // 2 * 512, k % 2 * 512 + 512, k // 2 * 512 + 512)
      tiles.append({})
      for number, question in questions[name].items():
        if (name, k, number) == lose:
          continue
        answer = "no" if k == 3 and number == min(questions[name]) else "yes"
        tiles[-1][number] = answer == "yes"
        detail.append(f"out/{name}.png, {place}, {question.text}, {answer}")
    if lose is None or lose[0] != name:
      scores = dpg.score(questions[name], tiles)
      result.append(", ".join(map(str, [f"out/{name}.png", *scores, np.mean(scores)])))
  (tmp_path / "r_detail.txt").write_text("\n".join(detail) + "\n")
  lines = [*result, "Model: out", "\tentity: 50.0", "DPG-Bench score: 81.25"]
  (tmp_path / "r.txt").write_text("\n".join(lines) + "\n")


def read_as_one(tmp_path):
  """Of sheet b both questions have one text, so the last "yes" is what both of them are read as."""
  text = (tmp_path / "r.txt").read_text().replace("0.5", "1.0").replace("0.875", "1.0")
  (tmp_path / "r.txt").write_text(text)


def call(tmp_path):
  argv = [str(tmp_path / "r.txt"), "--questions", str(tmp_path / "dpg_bench.csv")]
  return dpg.main([*argv, "--out", str(tmp_path / "out.json")])


def test_the_programs_files_are_read(tmp_path, capsys):
  write_results(tmp_path)
  read_as_one(tmp_path)
  assert call(tmp_path) == 0
  found = json.loads((tmp_path / "out.json").read_text())
  assert found["scores"]["dpg"]["value"] == pytest.approx(100 * (0.75 + 1) / 2)
  assert found["prompts"] == 2 and found["provenance"]["printed"] == 81.25
  assert found["provenance"]["missing"] == [] and "not scored" not in capsys.readouterr().out


def test_sheets_that_failed_are_counted(tmp_path, capsys):
  write_results(tmp_path, lose=("a", 3, 4))
  read_as_one(tmp_path)
  assert call(tmp_path) == 0
  assert json.loads((tmp_path / "out.json").read_text())["provenance"]["missing"] == ["a"]
  assert "not scored: 1 of 2 prompts, a among them" in capsys.readouterr().out


@pytest.mark.parametrize(
  "spoil, said",
  [
    (lambda d: (d / "r.txt").unlink(), "r.txt cannot be read"),
    (lambda d: (d / "r.txt").write_text("Model: x\n"), "no line is of a sheet"),
    (lambda d: (d / "r_detail.txt").unlink(), "r_detail.txt cannot be read"),
    (lambda d: (d / "r_detail.txt").write_text("rubbish\n"), "line 1 of"),
    (lambda d: (d / "r.txt").write_text("out/a.png, 1.0, 0.3\n"), "do not agree on a"),
    (lambda d: (d / "dpg_bench.csv").unlink(), "dpg_bench.csv cannot be read"),
    (lambda d: write_questions(d / "dpg_bench.csv", columns="abcde"), "has no column 'item_id'"),
    (lambda d: write_questions(d / "dpg_bench.csv", [*ROWS, ("c", 1, "x", "t", "q")]), "line 8 of"),
  ],
)
def test_what_is_wrong_is_named(tmp_path, capsys, spoil, said):
  write_results(tmp_path, sheets=("a",))
  spoil(tmp_path)
  assert call(tmp_path) == 2
  err = capsys.readouterr().err
  assert said in err and err.count("\n") == 1


def test_prompts_and_sheets(tmp_path):
  (tmp_path / "b.txt").write_text("a dog \n")
  (tmp_path / "a.txt").write_text("a cat")
  assert dpg.prompts(tmp_path) == {"a": "a cat", "b": "a dog"}
  (tmp_path / "c.txt").write_text(" ")
  with pytest.raises(UserError, match="c.txt is empty"):
    dpg.prompts(tmp_path)
  tiles = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
  made = dpg.sheet(tiles)
  assert made.shape == (4, 6, 3)
  assert [made[y, x, 0] for y, x in ((0, 0), (0, 5), (3, 0), (3, 5))] == [0, 1, 2, 3]
