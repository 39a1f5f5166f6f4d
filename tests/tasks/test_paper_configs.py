"""The configs of the paper: Table 8's values, networks of the published sizes, small stand-ins."""

import importlib

import jax
import pytest
from flax import linen as nn

from configs import ar_dtok
from tarjax import config as configs
from tarjax import optim, tasks

VARIANTS = {
  "ta_tok": ("full", "tiny"),
  "ar_dtok": (*(f"{r}_{s}" for r in ("256", "512", "1024") for s in ar_dtok.SIZES), "512", "tiny"),
  "dif_dtok": ("512", "tiny"),
  "mllm": (
    *(f"{s}_{p}" for s in ("1p5b", "7b", "tiny") for p in ("pretrain", "sft")),
    "demo",
    "tiny",
  ),
  "vqvae": ("full", "tiny"),
}
ALL = [f"{stage}:{variant}" for stage, variants in VARIANTS.items() for variant in variants]
FULL = [name for name in ALL if "tiny" not in name]


def parse(name, tmp_path="/tmp"):
  stage, _, variant = name.partition(":")
  file = importlib.import_module(f"configs.{stage}").__file__
  return configs.parse([f"--config={file}:{variant}", f"--workdir={tmp_path}"])[0]


def shapes(name):
  config = parse(name)
  task = tasks.make_task(config)
  key = jax.random.key(0)
  return config, jax.eval_shape(task.init, key), jax.eval_shape(task.init_frozen, key)


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", ALL)
def test_every_variant_is_whole(name):
  """All keys are read, every parameter names its axes, and warm-up ends before the run."""
  config, params, frozen = shapes(name)
  for tree in (params, frozen):
    axes = jax.tree.leaves(nn.get_partition_spec(tree), is_leaf=lambda x: x is None)
    assert None not in axes
  optim.make_optimizer(config.optim, config.steps)
  print(name, count(params), count(frozen))
