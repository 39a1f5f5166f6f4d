"""VQ-16, the image tokenizer under AR-DTok (arXiv 2406.06525): reconstruction and VQ losses."""

from typing import Any

import jax.numpy as jnp

from tarjax import losses
from tarjax.models.vqvae import VqVae, VqVaeConfig
from tarjax.tasks.inputs import pixels


class Task:
  """Batches are `images`: image uint8[b y x 3]."""

  def __init__(self, config):
    self.model: Any = VqVae(VqVaeConfig(**config.model))

  def init(self, rng):
    side = 2 * self.model.config.factor
    return self.model.init(rng, jnp.zeros((1, side, side, 3)))["params"]

  def init_frozen(self, rng):
    return {}

  def start(self, params, frozen, load, workdir):
    return params, frozen

  def static(self, step):
    return {}

  def loss(self, params, frozen, batch, rng, *, train):
    """MSE on [-1, 1] pixels + codebook + commitment (already times beta) + entropy."""
    images = pixels(batch["image"])
    out = self.model.apply({"params": params}, images)
    mse = losses.mse(out["rec"], images)
    loss = mse + out["codebook_loss"] + out["commit_loss"] + out["entropy_loss"]
    metrics = {
      "mse": mse,
      "psnr": 10 * jnp.log10(4 / mse),
      "commit": out["commit_loss"],
      "codes": out["indices"],
    }
    return loss, metrics
