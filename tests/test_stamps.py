"""Training refuses codes that other tokenizers made."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from tarjax import stamps
from tarjax.config import UserError, write_json
from tarjax.data import sources

TREE = {"quantizer": {"proj": np.eye(3, dtype=np.float32)}, "norm": np.ones(3, np.float32)}
HASH = stamps.tree_hash(TREE)


@pytest.fixture
def home(tmp_path, monkeypatch):
  """Folders encoded by two tokenizers, a run of the first, and a workdir."""
  for name, made in (("a", HASH), ("b", "f" * 64), ("none", None)):
    meta = {"tokenizers": {"ta_tok": made, "vqvae": "0" * 64}} if made else {}
    sources.write_records(tmp_path / name, [{"id": "x", "text": "t"}], meta=meta)
  monkeypatch.setattr(stamps, "load_tokenizer", lambda kind, spec, workdir: TREE)
  (tmp_path / "run").mkdir()
  return tmp_path


def config(*names, **more):
  entries = [{"name": "records", "path": f"../{name}"} for name in names]
  entries.append({"name": "digits", "task": "text"})
  return ConfigDict({"data": {"sources": entries}, "init": {}} | more)


NAMED = [{"ta_tok_from": "../ta_tok"}, {"widen": {"llm": "../llm", "ta_tok": "../ta_tok"}}]


@pytest.mark.parametrize("named", NAMED)
def test_codes_are_the_tokenizers_that_the_config_names(home, named):
  stamps.verify(config("a", **named), home / "run")
  assert json.loads((home / "run" / stamps.FILE).read_text())["ta_tok"] == HASH
  with pytest.raises(UserError, match=r"another ta_tok \(f{12}\) than the weights of \.\./ta_tok"):
    (home / "run" / stamps.FILE).unlink()
    stamps.verify(config("b", **named), home / "run")
  assert not (home / "run" / stamps.FILE).exists()


def test_a_resumed_run_keeps_to_its_tokenizers(home):
  stamps.verify(config("a"), home / "run")
  stamps.verify(config("a"), home / "run")
  with pytest.raises(UserError, match=r"another ta_tok .* than those that .*run began with"):
    stamps.verify(config("b"), home / "run")


def test_a_run_keeps_to_those_of_the_run_it_starts_from(home):
  (home / "sft").mkdir()
  stamps.verify(config("a"), home / "run")
  stamps.verify(config("a", init={"": "../run@7:blocks"}), home / "sft")
  (home / "sft" / stamps.FILE).unlink()
  with pytest.raises(UserError, match=r"another ta_tok .* than those that .*run learnt from"):
    stamps.verify(config("b", init={"": "../run"}), home / "sft")


def test_a_mixture_has_one_tokenizer(home):
  with pytest.raises(UserError, match=r"/b and .*/a were encoded by different ta_tok runs"):
    stamps.verify(config("a", "b"), home / "run")
  stamps.verify(config("a", "none"), home / "run")


def test_data_without_codes_need_no_stamp(home):
  stamps.verify(config("none"), home / "run")
  stamps.verify(ConfigDict({"data": {"format": "noise"}, "init": {}}), home / "run")
  assert not (home / "run" / stamps.FILE).exists()
  with pytest.raises(ValueError, match="is not a finished folder of records"):
    stamps.verify(config("nowhere"), home / "run")


def test_hash_sees_names_shapes_types_and_values():
  other = [
    {"quantizer": {"proj": np.eye(3, dtype=np.float32)}, "scale": np.ones(3, np.float32)},
    TREE | {"norm": np.ones((1, 3), np.float32)},
    TREE | {"norm": np.ones(3, np.float16)},
    TREE | {"norm": np.array([1, 1, 1.0001], np.float32)},
  ]
  assert len({HASH, *map(stamps.tree_hash, other)}) == 5
  assert stamps.tree_hash(dict(reversed(TREE.items()))) == HASH


def test_a_discriminator_is_no_part_of_a_tokenizer(monkeypatch):
  monkeypatch.setattr(stamps.checkpoint, "load", lambda spec, at: TREE | {"discriminator": TREE})
  assert stamps.tree_hash(stamps.load_tokenizer("vqvae", "x")) == HASH


def test_a_damaged_file_is_named(home):
  (home / "run" / stamps.FILE).write_text("[1")
  with pytest.raises(ValueError, match=r"tokenizers\.json is damaged"):
    stamps.verify(config("a"), home / "run")
  write_json(home / "run" / stamps.FILE, [1])
  with pytest.raises(ValueError, match="holds no object"):
    stamps.verify(config("a"), home / "run")
