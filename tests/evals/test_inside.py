"""Evaluators inside training: one device, eight, and two real processes have the same scores."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_paper
from ml_collections import ConfigDict

from tarjax import checkpoint, sharding, train
from tarjax.config import UserError, claim
from tarjax.convert.rules import flatten
from tarjax.evals import inside
from tarjax.evals.inside import Evaluators
from tarjax.sharding import make_mesh

HERE = Path(tiny_paper.__file__).parent


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  return tiny_paper.make_bundle(tmp_path_factory.mktemp("tiny_paper"))


@pytest.fixture(scope="module")
def alone(home):
  return tiny_paper.scores(home, ["mllm", "ar_dtok"], {}, jax.devices()[:1])


def same(found, wanted):
  for name in found:
    assert found[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-6), name


def test_eight_devices_score_like_one(home, alone):
  found = tiny_paper.scores(home, ["mllm", "ar_dtok"], {"data": 2, "fsdp": 2, "model": 2})
  assert found.keys() == alone.keys()
  same(found, alone)


def test_two_processes_score_like_one(home, alone, tmp_path):
  command = ["bash", HERE.parent / "launch" / "local.sh", "-n", "2", "--"]
  command += [HERE / "tiny_paper.py", home, tmp_path]
  env = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(HERE), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  for process in range(2):
    found = json.loads((tmp_path / f"{process}.json").read_text())
    assert "mllm/eval/geneval/p_yes" in found
    same(found, alone)


def test_what_is_measured(alone, home):
  assert alone["mllm/eval/geneval/pictures"] == 8 and 0 < alone["mllm/eval/geneval/p_yes"] < 1
  assert len(list((home / "mllm/evals/0000003.geneval").glob("*/samples/*.png"))) == 8
  rebuilt = {"vqvae/psnr", "vqvae/ssim", "vqvae/usage", "vqvae/perplexity", "scale3/psnr"}
  rebuilt |= {"scale3/ssim", *(f"ta_tok/scale3/{k}" for k in ("cosine", "usage", "perplexity"))}
  ours = {name for name in alone if name.startswith("ar_dtok")}
  assert ours == {f"ar_dtok/eval/reconstruction/{name}" for name in rebuilt}
  tokenizer = tiny_paper.scores(home, ["ta_tok"], {}, jax.devices()[:1])
  assert len(tokenizer) == 3  # no pictures
  for name, value in tokenizer.items():  # it is the one of the bundle
    assert value == pytest.approx(alone["ar_dtok" + name[len("ta_tok") :]])


def test_a_benchmark_is_asked_of_the_pipeline(home):
  class Pipe:
    bundle = {"sampling": {"scale": 3}}

    def describe(self, images, questions, *, scale, temperature, **how):
      assert (scale, temperature) == (2, 0.0) and len(questions) <= 4
      return ["yes"] * len(questions)

  config = tiny_paper.parse("mllm", home)
  found = dict(inside.asking("pope", config, 4, data="../data", limit=6, scale=2)(Pipe(), 1))
  assert found["pope/said_yes"] == 1 and found["pope/recall"] == 1


@pytest.mark.parametrize(
  "stage, evals, said",
  [
    ("mllm", {"popes": {}}, "no evaluator 'popes': those of mllm are pope, mme"),
    ("vqvae", {"pope": {}}, "those of vqvae are reconstruction"),
    ("mllm", {"pope": {"data": "../data"}}, "config.evals.pope: give `bundle`"),
    ("mllm", {"pope": {"bundle": "../x", "data": "../data"}}, "it has no bundle.json"),
    ("mllm", {"pope": {"bundle": ".."}}, "missing 1 required positional argument: 'data'"),
    ("mllm", {"pope": {"bundle": "..", "data": "../x"}}, "x is not a folder"),
    ("vqvae", {"reconstruction": {"source": tiny_paper.FOLDER, "bundle": ".."}}, "nothing reads"),
    ("vqvae", {"reconstruction": {"source": tiny_paper.FOLDER, "counts": 1}}, "'counts'"),
    ("vqvae", {"reconstruction": {"source": {"name": "digits", "task": "image"}}}, "endless"),
    ("mllm", {"digits": {"bundle": "..", "parts": ["x"]}}, "digits have no part 'x'"),
  ],
)
def test_mistakes_are_told_before_the_first_step(home, stage, evals, said):
  config = tiny_paper.parse(stage, home)
  config.evals = ConfigDict(evals)
  with pytest.raises(UserError) as told:
    Evaluators(config, make_mesh({"data": -1}))
  assert said in str(told.value)


def test_a_run_with_evaluators_ends_with_the_same_weights(home, monkeypatch):
  """They are logged every eval_every steps and at the end, and read the averaged parameters."""
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
  monkeypatch.setattr(sharding, "make_mesh", lambda *_: make_mesh({}, jax.devices()[:1]))
  found = {}
  for name in ("plain", "evaluated"):
    config = tiny_paper.parse("vqvae", home)
    config.data.sources = (tiny_paper.FOLDER,)
    config.frozen = ConfigDict()
    config.update(lpips={"weight": 0.0}, gan={"weight": 0.0})
    config.model.update(channels=4, latent=4, groups=2, multipliers=(1,))
    config.update_from_flattened_dict({"optim.ema": 0.5, "optim.lr": 0.01, "steps": 3})
    config.update_from_flattened_dict({"save_every": 3, "eval_batches": 1})
    if name == "plain":
      config.evals = ConfigDict()
    workdir = home / name
    claim(workdir, config)
    assert train.train(config, workdir, [], time.time()) == 0
    found[name] = flatten(checkpoint.load(str(workdir)))
  for name, wanted in found["plain"].items():
    np.testing.assert_array_equal(found["evaluated"][name], wanted, name)
  lines = [json.loads(x) for x in (home / "evaluated/metrics.jsonl").read_text().splitlines()]
  at = {x["step"]: x.get("eval/reconstruction/vqvae/psnr") for x in lines}
  assert at[1] is None and at[2] and at[3] and at[2] != at[3]


def test_evaluators_need_steps(home):
  config = tiny_paper.parse("vqvae", home)
  config.eval_every = 0
  with pytest.raises(UserError, match="set config.eval_every"):
    Evaluators(config, make_mesh({"data": -1}))
