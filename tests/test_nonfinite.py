"""Steps that are not finite: skipped, listed, and too many of them."""

import json

import pytest

from tarjax.nonfinite import Diverged, NonFinite

GOOD = {"skipped": False, "loss": 1.0, "grad_norm": 1.0}
BAD = {"skipped": True, "loss": float("nan"), "grad_norm": float("inf")}


def make(folder, then="stop", limit=2, **more):
  said: list[str] = []
  ids = lambda batch: [f"sample {batch}"]  # noqa: E731
  return NonFinite(folder, limit, then, ids, said.append, **more), said


def listed(folder):
  return [json.loads(line) for line in (folder / "nonfinite.jsonl").read_text().splitlines()]


def test_only_a_row_is_too_much(tmp_path):
  faults, said = make(tmp_path)
  for step, values in enumerate([GOOD, BAD, GOOD, BAD], 1):
    faults.look(step, step + 10, values)
    assert not faults.too_many
  faults.look(5, 15, BAD)
  assert faults.too_many and len(said) == 3 and "step 5 is skipped: loss nan" in said[-1]
  lines = listed(tmp_path)
  assert [(x["step"], x["batch"], x["ids"]) for x in lines] == [
    (2, 12, ["sample 12"]),
    (4, 14, ["sample 14"]),
    (5, 15, ["sample 15"]),
  ]
  assert lines[0]["loss"] == "nan" and lines[0]["grad_norm"] == "inf"
  with pytest.raises(Diverged, match="2 steps in a row, up to 5"):
    faults.rewind(5, 4)


def test_a_restart_lists_no_step_twice(tmp_path):
  make(tmp_path)[0].look(2, 12, BAD)
  with open(tmp_path / "nonfinite.jsonl", "a") as f:
    f.write('{"step": 3')  # killed in the middle of a line
  make(tmp_path)[0].look(2, 12, BAD)
  assert (tmp_path / "nonfinite.jsonl").read_text().count('"batch"') == 1
  make(tmp_path, write=False)[0].look(4, 14, BAD)
  assert (tmp_path / "nonfinite.jsonl").read_text().count('"batch"') == 1


def test_rewinding_to_one_save_for_ever_ends(tmp_path):
  faults, _ = make(tmp_path, "rewind", limit=1)
  for batch in range(3):
    faults.look(5, batch, BAD)
    assert faults.too_many
    faults.rewind(5, 4)
    assert not faults.too_many
  faults.look(5, 3, BAD)
  with pytest.raises(Diverged, match="again after 3 rewinds"):
    faults.rewind(5, 4)
  faults.rewind(9, 8)  # another save
