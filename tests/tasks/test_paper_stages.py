"""Every stage of the paper, small, on a mesh of eight devices, on one, and in parts."""

import json
import time

import jax
import numpy as np
import pytest
from tiny_world import make_world, parse

from tarjax import checkpoint, sharding, stamps, train
from tarjax.config import UserError, claim
from tarjax.convert.rules import flatten
from tarjax.convert.store import TreeReader

STAGES = ("ta_tok:tiny", "ar_dtok:512_tiny", "dif_dtok:tiny", "vqvae:tiny", "mllm:tiny_pretrain")
STAGES += ("llamagen:tiny", "hybrid:tiny", "hybrid:tiny_lite")
STAGES += ("mllm:tiny_pretrain_vqvae", "mllm:tiny_pretrain_janus", "mllm:tiny_pretrain_hybrid")
CRITICS = {"vqvae:tiny": {"gan.start": 0}, "hybrid:tiny": {"gan.weight": 0.0}}  # one program
FLOAT32 = {"model.dtype": "float32", "steps": 2, "save_every": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  return make_world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")


def run(home, name, stage, **changes):
  """Trains a stage in home/name; -> the lines of its log."""
  workdir = home / name
  config = parse(stage, workdir, **changes)
  if "scales" in config:
    config.scales = {"3": 1.0}  # one program
  claim(workdir, config)
  assert train.train(config, workdir, [], time.time()) == 0
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def on_one_device(monkeypatch):
  make = sharding.make_mesh
  monkeypatch.setattr(
    sharding, "make_mesh", lambda sizes, devices=None: make({}, jax.devices()[:1])
  )


def assert_alike(a, b, rtol):
  assert [x["step"] for x in a] == [x["step"] for x in b]
  for x, y in zip(a, b, strict=True):
    for key in ("loss", "grad_norm"):
      assert np.isfinite(x[key])
      np.testing.assert_allclose(x[key], y[key], rtol=rtol, err_msg=f"{key} of step {x['step']}")


@pytest.mark.parametrize("stage", STAGES)
def test_a_mesh_of_eight_trains_like_one_device(home, stage, monkeypatch):
  name = stage.replace(":", "_")
  changes = FLOAT32 | CRITICS.get(stage, {})
  mesh = run(home, f"{name}_mesh", stage, **changes)
  on_one_device(monkeypatch)
  assert_alike(mesh, run(home, f"{name}_one", stage, **changes), 1e-4)


@pytest.mark.parametrize("stage", ["ar_dtok:256_tiny", "mllm:tiny_sft"])
def test_bfloat16_as_the_config_has_it(home, stage):
  """The state stays in float32, and the losses of two steps are finite."""
  name = stage.replace(":", "_") + "_bfloat16"
  lines = run(home, name, stage, steps=2, save_every=2)
  assert all(np.isfinite([x["loss"], x["grad_norm"]]).all() for x in lines)
  assert parse(stage, home).model.dtype == "bfloat16"
  saved = flatten(checkpoint.load(str(home / name)))
  assert {x.dtype for x in saved.values()} == {np.dtype("float32")}


def test_a_batch_in_parts_trains_alike(home):
  """What the whole run does with `accumulate`, where nothing is drawn at random in the step."""
  whole = run(home, "mllm_whole", "mllm:tiny", **FLOAT32)
  parts = run(home, "mllm_parts", "mllm:tiny", accumulate=4, **FLOAT32)
  assert_alike(whole, parts, 1e-4)
  for a, b in zip(whole, parts, strict=True):
    for key in ("loss_text", "loss_image"):
      np.testing.assert_allclose(a[key], b[key], rtol=1e-4)
  with pytest.raises(
    UserError, match="batch=16 does not divide over data x fsdp x accumulate = 12"
  ):
    run(home, "mllm_odd", "mllm:tiny", accumulate=3)


def test_the_average_is_what_is_evaluated_and_saved(home):
  """An average that hardly moves scores as the start does, whatever becomes of the parameters."""
  changes = FLOAT32 | {"eval_every": 2, "eval_batches": 1, "optim.warmup": 0}
  start = run(home, "mllm_start", "mllm:tiny", **changes, **{"optim.lr": 1e-12})[-1]["val/loss"]
  moved = run(home, "mllm_moved", "mllm:tiny", **changes, **{"optim.lr": 0.03})[-1]["val/loss"]
  more = {"optim.lr": 0.03, "optim.ema": 1 - 1e-7}
  kept = run(home, "mllm_kept", "mllm:tiny", **changes, **more)[-1]["val/loss"]
  assert kept == pytest.approx(start, rel=1e-4) and abs(moved - start) > 0.01
  saved = TreeReader(home / "mllm_kept" / "checkpoints" / "2" / "opt")
  name = "blocks/mlp/up/kernel"
  (average,) = (saved.read(key) for key in saved.arrays if key.endswith(f"params/{name}"))
  first = flatten(checkpoint.load(str(home / "start_tiny")))
  np.testing.assert_allclose(average, first[name], atol=1e-5)


def test_a_ta_tok_with_a_codebook_of_its_own(home):
  """Table 9a: no rows of a language model, nowhere."""
  workdir = home / "ta_tok_table"
  config = parse("ta_tok:tiny", workdir, **FLOAT32)
  with config.unlocked():
    config.model.update(codebook="table", width=16, l2_normalized=True)
    config.dont_load = [*config.dont_load, "quantizer/table"]
    config.scales = {"3": 1.0}
  claim(workdir, config)
  assert train.train(config, workdir, [], time.time()) == 0
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert all(np.isfinite([x["loss"], x["codes_usage"]]).all() for x in lines)
  assert not (workdir / "selected_token_ids.npy").exists()
  quantizer = stamps.load_tokenizer("ta_tok", str(workdir))["quantizer"]
  assert quantizer["table"].shape == (64, 16) and len(quantizer) == 1
