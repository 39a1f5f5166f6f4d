"""A stage small enough to train in tests: two matrices, a frozen one, digits of noise as data.

As a script it is `python -m tarjax.train` with that stage and two CPU devices, unless
JAX_NUM_CPU_DEVICES says otherwise; each batch then takes FAKE_SECONDS. Batches numbered in
config.model.bad have a loss of NaN.
"""

import os
import sys
import time
import types
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tarjax import tasks
from tarjax.config import OPTIONAL
from tarjax.models.layers import Linear
from tarjax.sharding import shard

CONFIG = """
from ml_collections import ConfigDict

def get_config(variant="small"):
  if variant != "small":
    raise ValueError(f"no variant {variant}")
  return ConfigDict(dict(
    task="fake", seed=3, steps=12, batch=16,
    model=dict(width=8, depth=2, codes=32, scales=(1, 2), bad=()),
    init={}, frozen={}, dont_load=["frozen"],
    optim=dict(name="adamw", lr=1e-2, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1, warmup=2,
               schedule="cosine", final=0.1, clip=1.0),
    data=dict(format="noise", threads=1), mesh=dict(data=2, fsdp=2, model=2),
    log_every=4, save_every=4, eval_every=6, keep=2,
  ))
"""


class Net(nn.Module):
  width: int
  depth: int

  @nn.compact
  def __call__(self, x):  # [b l d]
    d, f = x.shape[-1], self.width
    for i in range(self.depth):
      h = Linear("bld,df->blf", (d, f), ("embed", "mlp"), bias=True, name=f"up{i}")(x)
      h = shard(nn.gelu(h), "batch", "length", "act_mlp")  # [b l f]
      x = x + Linear("blf,fd->bld", (f, d), ("mlp", "embed"), name=f"down{i}")(h)
    return x


class Task:
  fields: dict = {}

  def __init__(self, config):
    self.config = config
    self.net = Net(config.model.width, config.model.depth)

  def init(self, rng):
    return self.net.init(rng, jnp.zeros((1, 4, 8)))["params"]

  def init_frozen(self, rng):
    return {"teacher": Net(8, 1).init(rng, jnp.zeros((1, 4, 8)))["params"]}

  def start(self, params, frozen, load, workdir, batch):
    return params, frozen

  def static(self, step):
    rng = np.random.default_rng([self.config.seed, step])
    return {"scale": int(rng.choice(self.config.model.scales))}

  def loss(self, params, frozen, batch, rng, *, train, scale):
    x = batch["x"] * scale
    if train:
      x = x + 0.1 * jax.random.normal(rng, x.shape)
    y = self.net.apply({"params": params}, x)
    target = Net(8, 1).apply({"params": frozen["teacher"]}, x)
    loss = jnp.square(y - jax.lax.stop_gradient(target)).mean()
    loss = jnp.where(batch["bad"].any(), jnp.nan, loss)
    return loss, {"error": jnp.sqrt(loss), "codes": batch["codes"]}


def make_batches(config, *, start_step=0, sharding=None, split="train", fields=None):
  step, pause = start_step, float(os.environ.get("FAKE_SECONDS", "0"))
  while True:
    time.sleep(pause)
    rng = np.random.default_rng([config.seed, step, split == "test"])
    batch = {
      "x": rng.standard_normal((config.batch, 4, 8)).astype(np.float32),
      "codes": rng.integers(0, 32, (config.batch, 4)).astype(np.int32),
      "bad": np.full(config.batch, step in config.model.bad and split == "train"),
    }
    yield {
      k: jax.make_array_from_callback(v.shape, sharding, v.__getitem__) for k, v in batch.items()
    }
    step += 1


def sample_ids(config, split="train", fields=None):
  return lambda step: [f"{split}/{step}/{row}" for row in range(config.batch)]


def install(patch=setattr, modules=sys.modules.__setitem__):
  """Puts the stage and its data in the place of the real ones."""
  patch(tasks, "make_task", Task)
  tasks.TASK_KEYS["fake"] = frozenset()
  pipeline = types.ModuleType("tarjax.data.pipeline")
  pipeline.make_batches = make_batches  # type: ignore[attr-defined]
  pipeline.sample_ids = sample_ids  # type: ignore[attr-defined]
  modules("tarjax.data.pipeline", pipeline)


def config_file(folder: Path) -> Path:
  path = folder / "fake_config.py"
  path.write_text(CONFIG)
  return path


def get_config(changes: dict | None = None) -> ConfigDict:
  """The config above with {"optim.lr": 1.0} style changes."""
  scope: dict = {}
  exec(CONFIG, scope)
  config = scope["get_config"]()
  config.update(OPTIONAL | {"eval_batches": 2})
  config.update_from_flattened_dict(changes or {})
  return config


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  if "JAX_NUM_CPU_DEVICES" not in os.environ:
    jax.config.update("jax_num_cpu_devices", 2)
  install()
  from tarjax.train import main

  sys.exit(main(sys.argv[1:], time.time()))
