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

from tarjax import checkpoint, train
from tarjax.config import UserError, claim
from tarjax.convert.rules import flatten
from tarjax.evals.inside import Evaluators
from tarjax.sharding import make_mesh

HERE = Path(tiny_paper.__file__).parent


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  return tiny_paper.make_bundle(tmp_path_factory.mktemp("tiny_paper"))


@pytest.fixture(scope="module")
def alone(home):
  return tiny_paper.scores(home, {}, jax.devices()[:1])


def same(found, wanted):
  assert found.keys() == wanted.keys()
  for name in wanted:
    assert found[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-6), name


def test_eight_devices_score_like_one(home, alone):
  same(tiny_paper.scores(home, {"data": 2, "fsdp": 2, "model": 2}), alone)


def test_two_processes_score_like_one(home, alone, tmp_path):
  command = ["bash", HERE.parent / "launch" / "local.sh", "-n", "2", "--"]
  command += [HERE / "tiny_paper.py", home, tmp_path]
  env = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(HERE), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  for process in range(2):
    same(json.loads((tmp_path / f"{process}.json").read_text()), alone)


def test_what_is_measured(alone, home):
  assert alone["mllm/eval/geneval/pictures"] == 8
  assert 0 < alone["mllm/eval/geneval/p_yes"] < 1 and "mllm/eval/pope/f1" in alone
  assert len(list((home / "mllm/evals/0000003.geneval").glob("*/samples/*.png"))) == 8
  ours = {name.split("reconstruction/")[1] for name in alone if "/reconstruction/" in name}
  assert {"vqvae/psnr", "vqvae/ssim", "vqvae/usage", "scale3/psnr", "ta_tok/scale3/cosine"} <= ours
  assert not {"dif3/psnr", "scale1/psnr"} & ours


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
  found = {}
  for name in ("plain", "evaluated"):
    config = tiny_paper.parse("vqvae", home)
    config.data.sources = (tiny_paper.FOLDER,)
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
