"""`convert init-tar`, `select-codebook` and `recover-selection`, against the in-memory rules."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tarjax import checkpoint
from tarjax.convert.exporting import open_run
from tarjax.convert.rules import flatten
from tarjax.convert.selection import select
from tarjax.convert.widening import codebook
from tarjax.data.tokenizer import build_tokenizer
from tarjax.data.tokens import load_tokenizer, make_vocab
from tarjax.models import tar
from tarjax.models.qwen2 import Qwen2, Qwen2Config
from tarjax.models.ta_tok import TaTokConfig
from tarjax.models.vq import select_codebook
from tarjax.sampling import generate_tokens
from tests.convert import checkpoints as make

CODES, WIDTH, BPE = 128, 24, 300  # of the TA-Tok record, and of the tokenizer
TEXT = BPE + 22
TABLE = TEXT + 14  # Qwen2.5 has unused rows too


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """Runs: tied, untied and wide language models, TA-Tok; E is chosen rows of the tied one."""
  root = tmp_path_factory.mktemp("words")
  documents = ["the quick brown fox jumps over the lazy dog and runs away again " * 20]
  build_tokenizer(root / "tokenizer", BPE, documents)
  sizes = {"vocab_size": TABLE, "hidden_size": WIDTH, "num_attention_heads": 2}
  for name, more in (
    ("tied", {"tie_word_embeddings": True}),
    ("untied", {"tie_word_embeddings": False}),
    ("wide", {"tie_word_embeddings": False, "hidden_size": 32}),
  ):
    folder = make.qwen2(root / f"hf_{name}", "bfloat16", **(sizes | more))
    for file in (root / "tokenizer").iterdir():
      (folder / file.name).write_bytes(file.read_bytes())
    (folder / "generation_config.json").write_text('{"top_p": 0.8}')
    assert make.run("import", folder, "--to", root / name) == 0
  table = checkpoint.load(str(root / "tied"))["embed"]["embedding"].astype(np.float32)
  ids = np.sort(np.random.default_rng(0).choice(BPE, CODES, replace=False))
  file, options = make.ta_tok(root)
  holds = torch.load(file, weights_only=True)
  rows = torch.from_numpy(table[ids])
  rows[5] = 0.123  # no word's row
  holds["model"]["sd"]["bottleneck.regularizer.embedding.weight"] = rows
  torch.save(holds, file)
  assert make.run("import", file, "--to", root / "ta_tok", *options) == 0
  return root, ids


def start(world, llm, tmp_path, capsys, *options):
  """-> (run, its tree, the printed line)."""
  root, _ = world
  out = tmp_path / "tar"
  argv = ("--llm", root / llm, "--ta-tok", root / "ta_tok", "--to", out, *options)
  assert make.run("init-tar", *argv) == 0
  printed = capsys.readouterr().out
  assert printed.count("\n") == 1
  return out, checkpoint.load(str(out)), printed


def tok_codebook(root):
  run = open_run(str(root / "ta_tok"))
  return codebook(run, TaTokConfig(**run.config["model"]))


def equal(got, want):
  """In the table's own precision: both round float32 sums once."""
  np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=8e-3, atol=1e-6)


@pytest.mark.parametrize("llm", ["tied", "untied"])
@pytest.mark.parametrize("how", ["codebook", "selected_rows", "mean", "random"])
def test_rows_are_those_of_the_rules(world, llm, how, tmp_path, capsys):
  root, ids = world
  options = ["--embed-init", how, "--multiple", 64, "--seed", 3]
  if how == "selected_rows":
    np.save(tmp_path / "ids.npy", ids)
    options += ["--selected", tmp_path / "ids.npy"]
  run, tree, said = start(world, llm, tmp_path, capsys, *options)
  rows = tar.padded_rows(TEXT, CODES, 64)
  before = checkpoint.load(str(root / llm))
  want = tar.widen(
    before,
    how,
    text_rows=TEXT,
    rows=rows,
    codebook=tok_codebook(root),
    selected=ids,
    codes=CODES,
    seed=3,
  )
  equal(tree["embed"]["embedding"], want["embed"]["embedding"])
  assert ("lm_head" in tree) == (llm == "untied")
  if llm == "untied":
    equal(tree["lm_head"]["kernel"], want["lm_head"]["kernel"])
    assert "in the output table mean" in said
  kept = {k: v for k, v in flatten(before).items() if k.startswith(("blocks", "norm"))}
  make.same({k: flatten(tree)[k] for k in kept}, kept)
  text = before["embed"]["embedding"][:TEXT]
  assert tree["embed"]["embedding"][:TEXT].tobytes() == text.tobytes()
  assert how in said and f"{TEXT + 5}..{TEXT + 5 + CODES - 1} visual words" in said
  config = checkpoint.read_config(run)
  assert (config.model.vocab, config.words.text_rows, config.words.codes) == (rows, TEXT, CODES)


def test_the_tokenizer_and_the_export(world, tmp_path, capsys):
  run, tree, _ = start(world, "untied", tmp_path, capsys)
  vocab = make_vocab(load_tokenizer(run / "tokenizer"))
  assert (vocab.im_start, vocab.scale0, vocab.image0) == (TEXT, TEXT + 2, TEXT + 5)
  assert vocab.codes == CODES
  assert make.run("export", run, "--to", tmp_path / "out") == 0
  model, info = transformers.Qwen2ForCausalLM.from_pretrained(
    tmp_path / "out", output_loading_info=True
  )
  assert not any(info.values()) and model.dtype == torch.bfloat16
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["image_start_token_id"] == TEXT + 5
  assert config["image_end_token_id"] == TEXT + 5 + CODES - 1
  assert config["vocab_size"] == len(tree["embed"]["embedding"])
  assert (tmp_path / "out" / "generation_config.json").read_text() == '{"top_p": 0.8}'
  words = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
  assert words.token_to_id("<I7>") == TEXT + 12
  assert make.run("import", tmp_path / "out", "--to", tmp_path / "again") == 0
  again = checkpoint.read_config(tmp_path / "again")
  assert again.words.to_dict() == {"text_rows": TEXT, "codes": CODES}
  make.same(flatten(checkpoint.load(str(tmp_path / "again"))), flatten(tree))


def test_a_mismatch_of_widths_is_told(world, tmp_path, capsys):
  root, ids = world
  argv = ["--llm", root / "wide", "--ta-tok", root / "ta_tok", "--to", tmp_path / "tar"]
  for options in ([], ["--embed-init", "codebook"]):
    assert make.run("init-tar", *argv, *options) == 2
    err = capsys.readouterr().err
    assert "24 wide" in err and "32" in err and "selected_rows" in err
  assert not (tmp_path / "tar").exists()
  holes = ids.copy()
  holes[5] = -1
  np.save(tmp_path / "ids.npy", holes)
  options = ["--selected", tmp_path / "ids.npy", "--lm-head-init", "codebook_tokens"]
  _, tree, said = start(world, "wide", tmp_path, capsys, *options)
  assert "selected_rows" in said and "the mean for 1 codes" in said
  before = checkpoint.load(str(root / "wide"))
  table, head = before["embed"]["embedding"], before["lm_head"]["kernel"]
  found = tree["embed"]["embedding"][TEXT + 5 :][:CODES]
  seen = holes >= 0
  assert found[seen].tobytes() == table[ids[seen]].tobytes()
  equal(found[5], table[:TEXT].astype(np.float32).mean(0))
  found = tree["lm_head"]["kernel"][:, TEXT + 5 :][:, :CODES]
  np.testing.assert_array_equal(found[:, seen], head[:, ids[seen]])


@pytest.mark.parametrize(
  "change, said",
  [
    ({"--embed-init": "nearest"}, "none of codebook"),
    ({"--lm-head-init": "mean"}, "untied"),
    ({"--multiple": "0"}, "multiple=0"),
    ({"--scale": "nan"}, "scale=nan"),
    ({"--embed-init": "random", "--seed": "-1"}, "seed=-1"),
    ({"--selected": "ids.npz", "--embed-init": "selected_rows"}, "does not hold 128 token ids"),
    ({"--text-rows": "9999"}, "do not fit"),
    ({"--embed-init": "selected_rows"}, "recover-selection"),
    ({"--selected": "none.npy", "--embed-init": "selected_rows"}, "none.npy"),
    ({"--llm": "ta_tok"}, "no language model"),
    ({"--ta-tok": "tied"}, "no TA-Tok"),
    ({"--llm": "nothing"}, "not a run"),
  ],
)
def test_what_does_not_fit_is_refused(world, change, said, tmp_path, capsys, monkeypatch):
  root, ids = world
  monkeypatch.chdir(root)
  np.savez("ids.npz", ids=ids)
  given = {"--llm": "tied", "--ta-tok": "ta_tok", "--to": str(tmp_path / "tar")} | change
  assert make.run("init-tar", *(word for pair in given.items() for word in pair)) == 2
  err = capsys.readouterr().err
  assert said in err and err.count("\n") == 1
  assert not (tmp_path / "tar").exists()


@pytest.mark.parametrize("metric", ["l2", "sqeuclidean", "cosine"])
def test_select_codebook(world, metric, tmp_path):
  root, _ = world
  said = select(str(root / "tied"), 40, tmp_path / metric, metric, "largest", None)
  table = checkpoint.load(str(root / "tied"))["embed"]["embedding"].astype(np.float32)
  ids = np.load(tmp_path / metric / "selected_token_ids.npy")
  np.testing.assert_array_equal(ids, select_codebook(table[:BPE], 40, metric))
  assert f"40 of {BPE} rows" in said


def test_what_cannot_be_selected(world, tmp_path, capsys):
  root, _ = world
  argv = ("select-codebook", "--to", tmp_path / "out", "--k", 8, "--llm")
  assert make.run(*argv, root / "tied", "--candidates", 0) == 2
  assert "k=8 of 0 candidates" in capsys.readouterr().err
  folder = shutil.copytree(root / "hf_tied", tmp_path / "hf")
  tensors = load_file(folder / "model.safetensors")
  tensors["model.embed_tokens.weight"][3] = torch.nan
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
  assert make.run("import", folder, "--to", tmp_path / "run") == 0
  for metric in ("l2", "sqeuclidean", "cosine"):
    assert make.run(*argv, tmp_path / "run", "--metric", metric) == 2
    assert "not finite" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_recover_selection(world, tmp_path, capsys):
  root, ids = world
  argv = ("--ta-tok", root / "ta_tok", "--llm", root / "tied", "--to", tmp_path / "ids.npy")
  assert make.run("recover-selection", *argv) == 0
  assert f"{CODES - 1} of {CODES} rows are words" in capsys.readouterr().out
  found = np.load(tmp_path / "ids.npy")
  assert found[5] == -1
  np.testing.assert_array_equal(np.delete(found, 5), np.delete(ids, 5))
  assert make.run("recover-selection", *argv[:3], root / "wide") == 2
  assert "another language model" in capsys.readouterr().err


def test_equal_rows_go_to_the_first_word(world, tmp_path, capsys):
  root, ids = world
  twin = tmp_path / "twin"
  twin.mkdir()
  for file in Path(root / "hf_tied").iterdir():
    (twin / file.name).write_bytes(file.read_bytes())
  tensors = load_file(twin / "model.safetensors")
  tensors["model.embed_tokens.weight"][TABLE - 1] = tensors["model.embed_tokens.weight"][ids[0]]
  save_file(tensors, twin / "model.safetensors", metadata={"format": "pt"})
  assert make.run("import", twin, "--to", tmp_path / "run") == 0
  assert make.run("recover-selection", "--ta-tok", root / "ta_tok", "--llm", tmp_path / "run") == 0
  assert "1 match several words" in capsys.readouterr().out


@pytest.mark.parametrize("llm", ["tied", "untied"])
def test_transformers_continues_an_exported_tar_with_the_same_words(world, llm, tmp_path, capsys):
  """Greedy, in float32; prompts of text and visual words, padded on the left."""
  run, params, _ = start(world, llm, tmp_path, capsys)
  assert make.run("export", run, "--to", tmp_path / "out") == 0
  load = transformers.Qwen2ForCausalLM.from_pretrained
  original = load(tmp_path / "out", dtype=torch.float32, local_files_only=True)
  prompts = np.random.default_rng(1).integers(3, TEXT + tar.MARKS + CODES, (6, 12))
  prompts[:3, 4:] = TEXT + tar.MARKS + prompts[:3, 4:] % CODES
  mask = np.arange(12) >= np.array([0, 5, 2, 0, 7, 3])[:, None]
  options = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": None, "pad_token_id": 0}
  ids, seen = torch.from_numpy(prompts), torch.from_numpy(mask).long()
  want = original.generate(ids, attention_mask=seen, **options)[:, 12:].numpy()
  model = Qwen2(Qwen2Config(**checkpoint.read_config(run).model))
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
  seeds = np.zeros(6, np.uint32)
  got = generate_tokens(model, params, prompts, mask, seeds, max_new=16, temperature=0.0)
  np.testing.assert_array_equal(got, want)
  assert len(np.unique(want)) > 3
