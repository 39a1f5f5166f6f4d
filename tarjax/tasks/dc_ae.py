"""DC-AE, the autoencoder under Dif-DTok (arXiv 2410.10733): reconstruction."""

from typing import Any

import jax
import jax.numpy as jnp

from tarjax import losses
from tarjax.models.dc_ae import DcAe, DcAeConfig
from tarjax.tasks.inputs import pixels


class Task:
  """Batches are `images`: image uint8[b y x 3].

  Two optional weights shape latents for a diffusion: `config.unit` pulls every channel to mean 0
  and variance 1, which makes scaling=1 right, and `config.latent_noise` is the deviation of noise
  that the decoder learns to see through.
  """

  def __init__(self, config):
    self.net = DcAeConfig(**config.model)
    self.model: Any = DcAe(self.net)
    self.unit = config.get("unit", 0.0)
    self.noise = config.get("latent_noise", 0.0)
    self.couples = "config.unit compares moments of the batch" if self.unit else ""

  def init(self, rng):
    side = 2 * self.net.factor
    return self.model.init(rng, jnp.zeros((1, side, side, self.net.channels)))["params"]

  def init_frozen(self, rng):
    return {}

  def start(self, params, frozen, load, workdir, batch):
    return params, frozen

  def static(self, step):
    return {}

  def loss(self, params, frozen, batch, rng, *, train):
    """MSE on [-1, 1] pixels, and how far the latents' moments are from 0 and 1."""
    images = pixels(batch["image"])
    latents = self.model.apply({"params": params}, images, method="encode")  # [b y x c]
    mean, square = latents.mean((0, 1, 2)), jnp.square(latents).mean((0, 1, 2))
    off = (jnp.square(mean) + jnp.square(square - 1)).mean()
    if train and self.noise:
      latents += self.noise * jax.random.normal(rng, latents.shape)
    rec = self.model.apply({"params": params}, latents, method="decode")
    mse = losses.mse(rec, images)
    metrics = {"mse": mse, "psnr": 10 * jnp.log10(4 / mse), "latent_rms": jnp.sqrt(square.mean())}
    return mse + self.unit * off, metrics
