"""The parity verb on every fixture, on damaged ones, and on rubbish."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tarjax import parity
from tests.golden import FIXTURES

NAMES = sorted(p.name for p in FIXTURES.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_fixture_agrees(name):
  lines = parity.check(FIXTURES / name)
  assert lines and all(line.ok for line in lines), "\n".join(map(str, lines))
  skipped = [line for line in lines if "near ties only" in line.note]
  assert not skipped, f"nothing compared: {skipped}"


def copied(tmp_path, name, change=None, manifest=None):
  """A copy of a fixture; `change` edits its tensors in place, `manifest` its manifest."""
  listed = json.loads((FIXTURES / f"{name}.json").read_text())
  tensors = load_file(FIXTURES / f"{name}.safetensors")
  if change:
    change(tensors)
  if manifest:
    manifest(listed)
  save_file(tensors, tmp_path / f"{name}.safetensors")
  (tmp_path / f"{name}.json").write_text(json.dumps(listed))
  return str(tmp_path / f"{name}.json")


def test_a_damaged_weight_is_a_miss(tmp_path, capsys):
  def change(tensors):
    tensors["sd.output.weight"][3, 5] += 1

  assert parity.main([copied(tmp_path, "ar_clip_gqa", change)]) == 1
  assert "MISS" in capsys.readouterr().out


def test_a_wrong_output_is_a_miss(tmp_path):
  def nan(tensors):
    tensors["out.k5_p1.0_t1.0"][0, 0] = np.nan

  lines = parity.check(copied(tmp_path, "sampling_filter", nan))
  assert [line.name for line in lines if not line.ok] == ["k5_p1.0_t1.0"]


def test_all_agree_is_exit_code_0_from_any_file(capsys):
  assert parity.main([str(FIXTURES / "sampling_filter.safetensors")]) == 0
  assert "all outputs agree" in capsys.readouterr().out


def line(name, want, got, component="vqvae", inputs=None, **others):
  """The verdict on one output of a made-up record."""
  outputs = {name: np.asarray(want)} | {k: np.asarray(v) for k, v in others.items()}
  record = parity.Record(component, {}, {}, {}, inputs or {}, outputs)
  return parity.compare_one(record, name, {**outputs, name: np.asarray(got)})


def test_codes_may_differ_only_at_near_ties():
  margin = np.float32([0.3, 5e-5, 0.2])
  assert line("indices", [4, 5, 6], [4, 9, 6], margin=margin).ok
  assert not line("indices", [4, 5, 6], [9, 5, 6], margin=margin).ok


def test_pictures_may_differ_by_one_level():
  want = np.uint8([[0, 200]])
  assert line("image", want, np.uint8([[1, 199]])).ok
  assert not line("image", want, np.uint8([[0, 202]])).ok


def test_greedy_words_count_up_to_the_first_near_tie():
  logits = np.float32([[[0, 1, 5], [3, 3.00001, 0], [9, 1, 0]]])
  assert line("gen.tokens", [[2, 1, 0]], [[2, 0, 1]], **{"gen.logits": logits}).ok
  assert not line("gen.tokens", [[2, 1, 0]], [[1, 1, 0]], **{"gen.logits": logits}).ok


def test_padding_is_not_compared():
  want = np.ones((1, 3, 2), np.float32)
  got = want + np.float32([0, 0, 1])[None, :, None]
  for ok, mask in ((True, [[1, 1, 0]]), (False, [[1, 1, 1]])):
    inputs = {"mask_right": np.asarray(mask)}
    assert line("right.logits", want, got, "qwen2", inputs).ok is ok


def test_an_output_that_is_not_computed_is_a_miss():
  record = parity.Record("vqvae", {}, {}, {}, {}, {"rec": np.zeros(3)})
  assert not parity.compare(record, {})[0].ok


def rubbish(tmp_path):
  """(file, what the message says)."""
  missing = tmp_path / "nothing.json"
  text = tmp_path / "text.json"
  text.write_text("no json")
  (tmp_path / "text.safetensors").write_bytes(b"x")
  half = tmp_path / "half"
  half.mkdir()
  shutil.copy(FIXTURES / "sampling_filter.json", half)
  (half / "sampling_filter.safetensors").write_bytes(b"not tensors")
  folders = [tmp_path / n for n in ("unknown", "short", "keys")]
  for folder in folders:
    folder.mkdir()
  return [
    (missing, "there is no such file"),
    (tmp_path, "there is no such file"),
    (text, "not a manifest"),
    (half / "sampling_filter.json", "not a safetensors file"),
    (
      copied(folders[0], "sampling_filter", None, lambda m: m.update(component="gan")),
      "component 'gan' is none of",
    ),
    (
      copied(folders[1], "sampling_filter", lambda t: t.pop("in.logits")),
      "in.logits is missing",
    ),
    (copied(folders[2], "sampling_filter", None, lambda m: m["config"].clear()), "KeyError"),
  ]


def test_rubbish_gives_one_sentence_and_exit_code_2(tmp_path, capsys):
  for file, message in rubbish(tmp_path):
    assert parity.main([str(file)]) == 2, file
    text = capsys.readouterr().err
    assert message in text and text.count("\n") == 1, text
