"""The Hybrid representation's tokenizer: pixels and text at once (Sec. 4.3; arXiv 2502.20321).

L = l1 |rec - x| + l2 (rec - x)^2 + vq (codebook + beta commitment) + clip InfoNCE, with the weights
of `config.weights`. The InfoNCE is over the global batch.
"""

from typing import Any

import jax.numpy as jnp

from tarjax import losses
from tarjax.models.unitok import UniTok, UniTokConfig
from tarjax.tasks.inputs import pixels

WEIGHTS = ("l1", "l2", "vq", "clip")


class Task:
  """Batches are `pairs`: image uint8[b y x 3], text int32[b t]."""

  couples = "every picture of a batch is compared with every text"

  def __init__(self, config):
    self.net = UniTokConfig(**config.model)
    self.model: Any = UniTok(self.net)
    self.weights = dict(config.weights)
    if set(self.weights) != set(WEIGHTS):
      raise ValueError(f"config.weights has {sorted(self.weights)}; it needs {sorted(WEIGHTS)}")

  def init(self, rng):
    side = self.net.encoder.image
    images, ids = jnp.zeros((1, side, side, 3)), jnp.zeros((1, self.net.text.length), jnp.int32)
    return self.model.init(rng, images, ids)["params"]

  def init_frozen(self, rng):
    return {}

  def start(self, params, frozen, load, workdir, batch):
    return params, frozen

  def static(self, step):
    return {}

  def loss(self, params, frozen, batch, rng, *, train):
    """Distances on [-1, 1] pixels, the quantizer's terms and InfoNCE, weighed.

    "retrieval" is how often the right text wins. Codes are counted over all sub-codebooks.
    """
    images, weights = pixels(batch["image"]), self.weights
    out = self.model.apply(
      {"params": params}, images, batch["text"], train, method="read", rngs={"dropout": rng}
    )
    rec = self.model.apply(
      {"params": params}, out["tokens"], train, method="draw", rngs={"dropout": rng}
    )
    side = self.net.drawn
    near, metrics = self.near(rec, images[:, :side, :side])
    vq = out["codebook_loss"] + self.net.beta * out["commit"]
    clip = losses.contrastive_loss(out["image"], out["text"], out["scale"])
    logits = out["image"] @ out["text"].T  # [b b]
    right = jnp.diagonal(logits) >= logits.max(1)  # a repeated caption is no mistake
    offsets = jnp.arange(self.net.codebooks) * self.net.entries
    metrics |= {"vq": vq, "commit": out["commit"], "clip": clip, "retrieval": right.mean()}
    metrics |= {"scale": out["scale"], "codes": out["indices"] + offsets}
    return near + weights["vq"] * vq + weights["clip"] * clip, metrics

  def near(self, pictures, images):
    """What pictures float[b y x 3] cost: float32[], and metrics."""
    l1, l2 = jnp.abs(pictures - images).mean(), losses.mse(pictures, images)
    metrics = {"l1": l1, "l2": l2, "psnr": 10 * jnp.log10(4 / l2)}
    return self.weights["l1"] * l1 + self.weights["l2"] * l2, metrics
