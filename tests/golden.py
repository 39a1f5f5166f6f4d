"""Recorded runs of the PyTorch originals: tests/fixtures/<name>.safetensors with a manifest."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from safetensors.numpy import load_file

FIXTURES = Path(__file__).parent / "fixtures"


def load(name):
  """-> (config of the manifest, state dict, inputs, outputs), names without their prefix."""
  config = json.loads((FIXTURES / f"{name}.json").read_text())["config"]
  groups = {"sd": {}, "in": {}, "out": {}}
  for key, tensor in load_file(FIXTURES / f"{name}.safetensors").items():
    prefix, _, rest = key.partition(".")
    groups[prefix][rest] = tensor
  return config, groups["sd"], groups["in"], groups["out"]


def random_params(module, *args, scale=0.2):
  """Parameters of a module with no zero or one among them; nothing is compiled."""
  rng = np.random.default_rng(0)
  shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *args)["params"])
  return jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(np.float32), shapes)


def error(got, want):
  """Largest difference, relative to the largest magnitude of `want`."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  assert got.shape == want.shape, f"{got.shape} instead of {want.shape}"
  return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))


def close(got, want, rel=1e-4):
  """Asserts that `error` is at most `rel`; NaN fails."""
  found = error(got, want)
  assert found <= rel, f"error {found:.2e} of the scale, {rel:.0e} allowed"
