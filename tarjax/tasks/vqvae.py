"""VQ-16, the image tokenizer under AR-DTok (arXiv 2406.06525): distances, codebook, discriminator.

`config.lpips` adds a perceptual distance: its `weight`, and what its network has other than the
published one's, which comes from `config.frozen`. `config.gan` adds a discriminator: `weight`,
`start` (the update from which on it has its say, counted from 1), `adaptive`, and what a
PatchGanConfig has. Without them the only distance is the squared error.

A small tokenizer writes what it knows of one place into the codes of all others, the empty ones
first: pictures come back well, but moving one digit changes three quarters of the codes, and
AR-DTok cannot learn them. `config.mix` is the share of pictures, in training, that take the codes
of some places from another picture of the batch, and its pixels there as the target: only codes
that speak for their own place can answer that. And the encoder, which sees the mixed picture as
well, is held LOCAL times to saying of each place what it said before, relative to the variance:
without it a quarter of the codes stood for empty ground, told apart by what lies around it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from tarjax import adversarial, losses
from tarjax.models.lpips import Lpips, LpipsConfig
from tarjax.models.patchgan import PatchGan, PatchGanConfig
from tarjax.models.vqvae import VqVae, VqVaeConfig
from tarjax.tasks.inputs import pixels

LOCAL = 1.0


class Task:
  """Batches are `images`: image uint8[b y x 3]."""

  def __init__(self, config):
    self.model: Any = VqVae(VqVaeConfig(**config.model))
    dtype = {"dtype": self.model.config.dtype}
    lpips, gan = dict(config.get("lpips", {})), dict(config.get("gan", {}))
    self.lpips_weight = lpips.pop("weight", 0.0)
    self.lpips: Any = Lpips(LpipsConfig(**dtype | lpips))
    self.gan_weight, self.gan_start = gan.pop("weight", 0.0), gan.pop("start", 0)
    self.adaptive = gan.pop("adaptive", False)
    self.gan: Any = PatchGan(PatchGanConfig(**dtype | gan))
    self.mix = config.get("mix", 0.0)
    self.couples = "config.mix exchanges places between pictures" if self.mix else ""
    if self.model.config.entropy_ratio:
      self.couples = "config.model.entropy_ratio weighs an entropy over the batch"
    if self.gan_weight:
      self.couples = "config.gan's batch norms are over the batch"

  def init(self, rng):
    side = 2 * self.model.config.factor
    params = self.model.init(rng, jnp.zeros((1, side, side, 3)))["params"]
    if self.gan_weight:
      side = 3 * 2**self.gan.config.layers
      judge = self.gan.init(jax.random.fold_in(rng, 1), jnp.zeros((1, side, side, 3)))
      params = dict(params, discriminator=judge["params"])
    return params

  def init_frozen(self, rng):
    if not self.lpips_weight:
      return {}
    image = jnp.zeros((1, 16, 16, 3))
    return {"lpips": self.lpips.init(rng, image, image)["params"]}

  def start(self, params, frozen, load, workdir, batch):
    return params, frozen

  def static(self, step):
    return {"judged": True} if self.gan_weight and step + 1 >= self.gan_start else {}

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
    loss, metrics = self.compare(params, frozen, quant, images, train and judged)
    loss = loss + out["codebook_loss"] + out["commit_loss"] + out["entropy_loss"] + LOCAL * apart
    return loss, metrics | {"commit": out["commit_loss"], "codes": out["indices"]}

  def compare(self, params, frozen, quant, images, judged: bool):
    """Quantized float[b h w d] -> what their pictures cost, float32[], and metrics."""
    near, last = functools.partial(self.near, frozen, images), None
    decoder = params["decoder"]

    def decode(kernel):
      edge = dict(decoder["conv_out"], kernel=kernel)
      whole = dict(params, decoder=dict(decoder, conv_out=edge))
      return self.model.apply({"params": whole}, quant, method="decode")

    def judge(params, pictures):
      return self.gan.apply({"params": params}, pictures)

    kernel = decoder["conv_out"]["kernel"]
    if judged and self.adaptive:
      pictures, last = jax.vjp(decode, kernel)
    else:
      pictures = decode(kernel)
    if judged:
      make: Any = {"weight": self.gan_weight, "last": last}
      return adversarial.loss(near, judge, params["discriminator"], pictures, images, **make)
    loss, metrics = near(pictures)
    silent = adversarial.METRICS if self.gan_weight else ()
    return loss, metrics | dict.fromkeys(silent, jnp.float32(0))

  def near(self, frozen, images, pictures):
    """Squared error and, weighed, LPIPS of float[b y x 3]: float32[], and metrics."""
    mse = losses.mse(pictures, images)
    metrics = {"mse": mse, "psnr": 10 * jnp.log10(4 / mse)}
    if not self.lpips_weight:
      return mse, metrics
    lpips = self.lpips.apply({"params": frozen["lpips"]}, pictures, images).mean()
    return mse + self.lpips_weight * lpips, metrics | {"lpips": lpips}


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
