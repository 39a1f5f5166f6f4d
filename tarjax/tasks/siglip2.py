"""SigLIP2 from scratch: two towers under the sigmoid loss (arXiv 2303.15343, 2502.14786).

With a published encoder at hand this stage is skipped: TA-Tok starts from the imported one. The
published one learned dense features from a captioning decoder and self-distillation (2502.14786
Sec. 2). In a short run on captions alone every patch comes to hold the whole picture's meaning
(82% of the energy on the laptop) and nothing of its own (6%), which leaves no word for a
de-tokenizer to draw from. `config.dense` weighs a stand-in: a linear map reads the pixels of each
block of POOL x POOL patches off the hidden state that TA-Tok reads, pooled and of unit length; the
state's mean square counts ENERGY times as much, or one constant vector grows to 90% of it.
`config.naming` (weight, and the number of names of each attribute) stands in for the published
one's captions of regions: linear maps name what stands in each block. Its `ground` weighs how far
the states of blocks in which nothing stands lie from one another.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax

from tarjax import losses
from tarjax.models.layers import Linear, lecun
from tarjax.models.siglip2 import Siglip2, TextConfig, VisionConfig, unit
from tarjax.models.ta_tok import pool
from tarjax.sharding import named
from tarjax.tasks.inputs import pixels

POOL, ENERGY, CENTRE, SHARP = 2, 0.01, 0.25, 10.0


class ReadOut(nn.Module):
  """States float[b l d] of unit length -> pixels float[b l c], linear, and logits float[b l n].

  A logit is SHARP times the cosine to the name's vector, so that a state that tells two names
  apart lies far from one to the other, and a quantiser keeps it there.
  """

  pixels: int
  names: int

  @nn.compact
  def __call__(self, x):
    shape, axes = (x.shape[-1], self.pixels), ("embed", "channels")
    make: Any = {"bias": True, "init": lecun, "name": "linear"}
    read = Linear("bld,dc->blc", shape, axes, **make)(x * x.shape[-1] ** 0.5)
    if not self.names:
      return read, None
    init = named(lecun, "channels", "embed")
    vectors = self.param("names", init, (self.names, x.shape[-1]), jnp.float32)
    bias = self.param("bias", named(nn.initializers.zeros, "channels"), (self.names,))
    return read, SHARP * x @ unit(vectors).T + bias


class Task:
  """Batches are `pairs`: image uint8[b y x 3], text int32[b t], regions int32[b l k] to name."""

  couples = "every picture of a batch is compared with every text"

  def __init__(self, config):
    self.vision = VisionConfig(**config.model.vision)
    self.text = TextConfig(**config.model.text)
    self.model: Any = Siglip2(self.vision, self.text)
    self.dense = config.get("dense", 0.0)
    self.naming = dict(config.get("naming", {}))
    self.parts = (self.vision.grid // POOL) ** 2  # blocks of a picture
    self.pixels = (POOL * self.vision.patch) ** 2 * self.vision.channels
    self.read_out: Any = ReadOut(self.pixels, sum(self.naming.get("names", ())))
    if self.naming and not self.dense:
      raise ValueError("config.naming needs config.dense: both are read off the same states")

  def init(self, rng):
    side, width = self.vision.image, self.vision.width
    images = jnp.zeros((1, side, side, self.vision.channels))
    params = self.model.init(rng, images, jnp.zeros((1, self.text.length), jnp.int32))["params"]
    if self.dense:
      params = dict(params, dense=self.read_out.init(rng, jnp.zeros((1, 1, width)))["params"])
    return params

  def init_frozen(self, rng):
    return {}

  def start(self, params, frozen, load, workdir, batch):
    return params, frozen

  def static(self, step):
    return {}

  def loss(self, params, frozen, batch, rng, *, train):
    """Sigmoid loss over all pairs of the global batch, and how often the right text wins."""
    images, towers = pixels(batch["image"]), {k: v for k, v in params.items() if k != "dense"}

    def both(model):
      _, pooled, states = model.vision(images, self.dense > 0)
      scalars = (model.logit_scale, model.logit_bias)
      return unit(pooled), model.embed_text(batch["text"]), *scalars, states

    image, text, scale, bias, states = self.model.apply({"params": towers}, method=both)
    loss = losses.sigmoid_loss(image, text, scale, bias)
    logits = image @ text.T  # [b b]
    right = jnp.diagonal(logits) >= logits.max(1)  # a repeated caption is no mistake
    metrics = {"retrieval": right.mean(), "logit_scale": scale, "logit_bias": bias}
    if self.dense:
      hidden = unit(pool(states[-2], POOL))  # [b l d]
      read, logits = self.read_out.apply({"params": params["dense"]}, hidden)
      metrics["dense"] = losses.mse(read, blocks(images, POOL * self.vision.patch))
      metrics["energy"] = jnp.square(states[-2]).mean()
      metrics["centre"] = jnp.square(states[-2].mean((0, 1))).mean()
      held = ENERGY * metrics["energy"] + CENTRE * metrics["centre"]
      loss += self.dense * (metrics["dense"] + held)
      if self.naming:
        metrics |= naming(logits, batch["regions"], self.naming["names"])
        metrics["ground"] = spread(hidden, batch["regions"][..., 0] == 0)
        loss += self.naming["weight"] * metrics["naming"]
        loss += self.naming.get("ground", 0.0) * metrics["ground"]
    return loss, metrics


def naming(logits, regions, names):
  """Cross-entropy of logits float[b l sum(names)], and how often what stands there is named right.

  Args:
    regions: int32[b l k], 0 where nothing stands.
    names: how many values each of the k attributes has.
  """
  loss, something = 0.0, regions[..., 0] > 0  # [b l]
  right = something
  for i, part in enumerate(jnp.split(logits, [sum(names[:k]) for k in range(1, len(names))], -1)):
    picked = optax.softmax_cross_entropy_with_integer_labels(part, regions[..., i])
    loss += picked.mean()
    right &= part.argmax(-1) == regions[..., i]
  return {"naming": loss, "named": right.sum() / jnp.maximum(something.sum(), 1)}


def spread(states, where):
  """Mean squared distance of float[b l d] from their mean, among those that bool[b l] chooses."""
  weight = where[..., None] / jnp.maximum(where.sum(), 1)
  mean = (weight * states).sum((0, 1))
  return (weight * jnp.square(states - mean)).sum()


def blocks(images, side: int):
  """float[b y x c] -> float[b l side*side*c], whole squares in raster order."""
  b, y, x, c = images.shape
  cut = images[:, : y // side * side, : x // side * side]
  cut = cut.reshape(b, y // side, side, x // side, side, c).swapaxes(2, 3)
  return cut.reshape(b, -1, side * side * c)
