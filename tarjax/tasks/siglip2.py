"""SigLIP2 from scratch: two towers under the sigmoid loss (arXiv 2303.15343, 2502.14786).

With a published encoder at hand this stage is skipped: TA-Tok starts from the imported one.
"""

from typing import Any

import jax.numpy as jnp

from tarjax import losses
from tarjax.models.siglip2 import Siglip2, TextConfig, VisionConfig
from tarjax.tasks.inputs import pixels


class Task:
  """Batches are `pairs`: image uint8[b y x 3], text int32[b t]."""

  def __init__(self, config):
    self.vision = VisionConfig(**config.model.vision)
    self.text = TextConfig(**config.model.text)
    self.model: Any = Siglip2(self.vision, self.text)

  def init(self, rng):
    side = self.vision.image
    images = jnp.zeros((1, side, side, self.vision.channels))
    return self.model.init(rng, images, jnp.zeros((1, self.text.length), jnp.int32))["params"]

  def init_frozen(self, rng):
    return {}

  def start(self, params, frozen, load, workdir):
    return params, frozen

  def static(self, step):
    return {}

  def loss(self, params, frozen, batch, rng, *, train):
    """Sigmoid loss over all pairs of the global batch, and how often the right text wins."""
    image, text, scale, bias = self.model.apply(
      {"params": params}, pixels(batch["image"]), batch["text"]
    )
    loss = losses.sigmoid_loss(image, text, scale, bias)
    logits = image @ text.T  # [b b]
    right = jnp.diagonal(logits) >= logits.max(1)  # a repeated caption is no mistake
    return loss, {"retrieval": right.mean(), "logit_scale": scale, "logit_bias": bias}
