"""bench: what it refuses, and that torch beside it computes the same from the same weights."""

import json

import numpy as np
import pytest

from tarjax import bench, chips, timing
from tarjax.config import parse
from tarjax.stage import make_stage

MLLM, TA_TOK = "--config=configs/mllm.py:tiny", "--config=configs/ta_tok.py:tiny"
F32 = "--config.model.dtype=float32"


@pytest.fixture(autouse=True)
def short(monkeypatch):
  monkeypatch.setattr(timing, "ROUND", 0.0)


@pytest.mark.parametrize(
  "flags, said",
  [
    ([MLLM, "--against=jax"], "--against=jax: there is only torch"),
    ([MLLM, "--rounds=0"], "--rounds=0 is not a number from 1 on"),
    ([MLLM, "--torch-parts"], "--torch-parts takes a value"),
    ([MLLM, "--json=yes"], "--json takes no value"),
    ([MLLM, "--config.batchh=3"], "batchh"),
    ([MLLM, "--config.batch=6"], "batch=6 does not divide"),
    ([MLLM, "--against=torch", "--torch-parts=3"], "--torch-parts=3 does not divide"),
    (["--config=configs/vqvae.py:tiny", "--against=torch"], "compares mllm and ta_tok, not vqvae"),
  ],
)
def test_mistakes_are_told_in_one_sentence(flags, said, capsys):
  assert bench.main(flags) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_a_step_is_timed_on_a_mesh_that_fits(capsys):
  small = ["--config.model.depth=1", "--config.data.length=64", "--config.mesh.fsdp=3"]
  assert bench.main([MLLM, *small, "--rounds=2", "--json"]) == 0
  result = json.loads(capsys.readouterr().out)
  ours = result["tarjax"]
  assert result["mesh"] == {"data": 1, "fsdp": 8, "model": 1} and "torch" not in result
  assert ours["fastest"] <= ours["seconds"] <= ours["slowest"]
  assert ours["tokens_per_second"] == pytest.approx(16 * 64 / ours["seconds"])
  assert ours["mfu"] is None and ours["peak_bytes"] > 0  # no one knows a CPU's peak
  config, _ = parse([MLLM, *small[:2], "--workdir=bench"])
  flops = make_stage(config).model_flops({})
  assert ours["tflops_per_device"] == pytest.approx(flops / 8 / ours["seconds"] / 1e12)


def test_torchs_step_is_the_same_step(capsys):
  """With no row of the table unused, for torch counts padding rows as words."""
  small = [F32, "--config.model.vocab=691", "--config.data.length=32", "--config.batch=8"]
  small += ["--config.mesh.data=8", "--config.mesh.fsdp=1", "--config.mesh.model=1"]
  argv = [MLLM, *small, "--config.model.remat=none", "--rounds=1", "--torch-parts=4"]
  assert bench.main([*argv, "--against=torch", "--json"]) == 0
  result = json.loads(capsys.readouterr().out)
  assert result["torch"]["loss"] == pytest.approx(result["tarjax"]["loss"], rel=1e-5)
  ratio = result["torch"]["seconds"] / result["tarjax"]["seconds"]
  assert result["ratio"]["median"] == pytest.approx(ratio)


def test_torchs_codes_are_the_same_codes(capsys):
  assert bench.main([TA_TOK, F32, "--rounds=1", "--against=torch"]) == 0
  said = capsys.readouterr().out
  assert "100.00% of the codes are equal" in said and "times as fast as torch" in said


@pytest.mark.parametrize("stage", ["ar_dtok.py:256_tiny", "dif_dtok.py:tiny", "vqvae.py:tiny"])
def test_made_up_data_are_what_the_stage_reads(stage):
  config, _ = parse([f"--config=configs/{stage}", "--workdir=bench"])
  stage = make_stage(config)
  batch = timing.made_up(stage, segments=4)
  for name, like in stage.batch().items():
    assert batch[name].shape == like.shape and batch[name].dtype == like.dtype
    assert name == "latent" or 0 <= batch[name].min() <= batch[name].max() < 2**16


def test_packed_rows_are_full():
  config, _ = parse([MLLM, "--workdir=bench", "--config.data.length=10"])
  row = {k: v[0] for k, v in timing.made_up(make_stage(config), segments=4).items()}
  np.testing.assert_array_equal(row["segments"], [1, 1, 1, 2, 2, 2, 3, 3, 3, 4])
  np.testing.assert_array_equal(row["positions"], [0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


def test_peaks_of_what_jax_calls_a_chip():
  assert chips.peak_of("TPU v5") == 459e12
  assert chips.peak_of("NVIDIA H100 80GB HBM3") == chips.peak_of("NVIDIA H200") == 989e12
  assert chips.peak_of("NVIDIA H100 PCIe") == 756e12
  assert chips.peak_of("cpu") is None
