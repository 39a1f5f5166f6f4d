"""LlamaGen: draws VQ-16 codes from the class of a picture (arXiv 2406.06525), as in Table 11."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from tarjax import losses
from tarjax.models.ar_dtok import ArDtok, ArDtokConfig
from tarjax.tasks.inputs import Field


class Task:
  """Batches are `classes`: vq int32[b t], label int32[b]."""

  def __init__(self, config):
    self.net = ArDtokConfig(**config.model)
    if self.net.cond != "class":
      raise ValueError(f"config.model.cond={self.net.cond!r}: LlamaGen draws from a 'class'")
    self.model: Any = ArDtok(self.net)
    self.fields = {
      "label": Field((), np.int32, self.net.cond_vocab),
      "vq": Field((self.net.length,), np.int32, self.net.vocab),
    }

  def init(self, rng):
    codes = jnp.zeros((1, self.net.length), jnp.int32)
    return self.model.init(rng, jnp.zeros(1, jnp.int32), codes)["params"]

  def init_frozen(self, rng):
    return {}

  def start(self, params, frozen, load, workdir, batch):
    return params, frozen

  def static(self, step):
    return {}

  def loss(self, params, frozen, batch, rng, *, train):
    """Mean cross-entropy of the VQ codes in raster order."""
    logits = self.model.apply(
      {"params": params}, batch["label"], batch["vq"], train=train, rngs={"dropout": rng}
    )
    total, count = losses.masked_cross_entropy(logits, batch["vq"], jnp.ones(logits.shape[:2]))
    right = (logits.argmax(-1) == batch["vq"]).mean()
    return total / count, {"accuracy": right}
