"""VQ-16, the image tokenizer under AR-DTok (arXiv 2406.06525): distances, codebook, discriminator.

`config.lpips` adds a perceptual distance and `config.gan` a discriminator, see `tasks.critics`.
Without them the only distance is the squared error.

A small tokenizer writes what it knows of one place into the codes of all others, the empty ones
first: pictures come back well, but moving one digit changes three quarters of the codes, and
AR-DTok cannot learn them. `config.mix` is the share of pictures, in training, that take the codes
of some places from another picture of the batch, and its pixels there as the target: only codes
that speak for their own place can answer that. And the encoder, which sees the mixed picture as
well, is held LOCAL times to saying of each place what it said before, relative to the variance:
without it a quarter of the codes stood for empty ground, told apart by what lies around it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from tarjax import losses
from tarjax.models.vqvae import VqVae, VqVaeConfig
from tarjax.tasks.critics import Critics
from tarjax.tasks.inputs import pixels

LOCAL = 1.0


class Task:
  """Batches are `images`: image uint8[b y x 3]."""

  def __init__(self, config):
    self.model: Any = VqVae(VqVaeConfig(**config.model))
    self.critics = Critics(config, self.model.config.dtype)
    self.mix = config.get("mix", 0.0)
    self.couples = "config.mix exchanges places between pictures" if self.mix else ""
    if self.model.config.entropy_ratio:
      self.couples = "config.model.entropy_ratio weighs an entropy over the batch"
    self.couples = self.critics.couples or self.couples

  def init(self, rng):
    side = 2 * self.model.config.factor
    params = self.model.init(rng, jnp.zeros((1, side, side, 3)))["params"]
    return dict(params, **self.critics.init(rng))

  def init_frozen(self, rng):
    return self.critics.init_frozen(rng)

  def start(self, params, frozen, load, workdir, batch):
    return params, frozen

  def static(self, step):
    return self.critics.static(step)

  def loss(self, params, frozen, batch, rng, *, train, judged=False):
    """Distances on [-1, 1] pixels + codebook + commitment (already times beta) + entropy.

    In training, `judged` adds the losses of decoder and discriminator.
    """
    images = pixels(batch["image"])
    model = {"params": params}
    z = self.model.apply(model, images, method="encode")
    out = self.model.apply(model, z, method="quantize")
    quant, apart = out["quant"], 0.0
    if train and self.mix:
      both = jnp.concatenate([quant, z], -1)
      both, images = swap_places(rng, both, images, self.mix)
      quant, said = jnp.split(both, 2, -1)
      again = self.model.apply(model, images, method="encode")
      apart = losses.mse(again, said) / jax.lax.stop_gradient(said.var())

    def draw(params):
      return self.model.apply({"params": params}, quant, method="decode")

    def near(pictures):
      mse = losses.mse(pictures, images)
      perceptual, metrics = self.critics.perceptual(frozen, pictures, images)
      return mse + perceptual, {"mse": mse, "psnr": 10 * jnp.log10(4 / mse)} | metrics

    judged &= train
    loss, metrics = self.critics.compare(params, images, draw, near, last="conv_out", judged=judged)
    loss = loss + out["codebook_loss"] + out["commit_loss"] + out["entropy_loss"] + LOCAL * apart
    return loss, metrics | {"commit": out["commit_loss"], "codes": out["indices"]}


def swap_places(rng, quant, images, share: float):
  """Exchanges places between each picture and the one before it in the batch.

  The places are those above a random row or left of a random column, but not both.

  Args:
    rng: key.
    quant: float[b h w d], one vector per place.
    images: float[b y x c], y and x multiples of h and w.
    share: the chance of a picture to be changed.

  Returns:
    quant and images, of the same shapes.
  """
  b, h, w = quant.shape[:3]
  rows, columns, chance = jax.random.split(rng, 3)
  above = jnp.arange(h)[:, None] < jax.random.randint(rows, (b, 1, 1), 1, h)
  left = jnp.arange(w) < jax.random.randint(columns, (b, 1, 1), 1, w)
  taken = (above ^ left) & (jax.random.uniform(chance, (b, 1, 1)) < share)  # [b h w]
  seen = taken.repeat(images.shape[1] // h, 1).repeat(images.shape[2] // w, 2)  # [b y x]
  quant = jnp.where(taken[..., None], jnp.roll(quant, 1, 0), quant)
  return quant, jnp.where(seen[..., None], jnp.roll(images, 1, 0), images)
