"""The Hybrid representation's tokenizer: pixels and text at once (Sec. 4.3; arXiv 2502.20321).

L = l1 |rec - x| + l2 (rec - x)^2 + LPIPS + vq (codebook + beta commitment) + clip InfoNCE, with the
weights of `config.weights`; the InfoNCE is over the global batch. `config.lpips` and `config.gan`
are those of `tasks.critics`. What differs from the original: its discriminator looks at features of
a frozen DINO, sees augmented pictures (DiffAug) and is held to say the same of them (bCR), and its
weight grows for a while when it starts; here it is a PatchGAN that looks at the pictures.
"""

from typing import Any

import jax.numpy as jnp

from tarjax import losses
from tarjax.models.unitok import UniTok, UniTokConfig
from tarjax.tasks.critics import Critics
from tarjax.tasks.inputs import pixels

WEIGHTS = ("l1", "l2", "vq", "clip")


class Task:
  """Batches are `pairs`: image uint8[b y x 3], text int32[b t]."""

  couples = "every picture of a batch is compared with every text"

  def __init__(self, config):
    self.net = UniTokConfig(**config.model)
    self.model: Any = UniTok(self.net)
    self.critics = Critics(config, self.net.dtype)
    self.weights = dict(config.weights)
    if set(self.weights) != set(WEIGHTS):
      raise ValueError(f"config.weights has {sorted(self.weights)}; it needs {sorted(WEIGHTS)}")

  def init(self, rng):
    side = self.net.encoder.image
    images, ids = jnp.zeros((1, side, side, 3)), jnp.zeros((1, self.net.text.length), jnp.int32)
    return dict(self.model.init(rng, images, ids)["params"], **self.critics.init(rng))

  def init_frozen(self, rng):
    return self.critics.init_frozen(rng)

  def start(self, params, frozen, load, workdir, batch):
    return params, frozen

  def static(self, step):
    return self.critics.static(step)

  def loss(self, params, frozen, batch, rng, *, train, judged=False):
    """Distances on [-1, 1] pixels, the quantizer's terms and InfoNCE, weighed.

    In training, `judged` adds the losses of decoder and discriminator. "retrieval" is how often the
    right text wins. Codes are counted over all sub-codebooks.
    """
    images, weights, side = pixels(batch["image"]), self.weights, self.net.drawn
    target = images[:, :side, :side]

    def run(params, *inputs, method):
      rngs = {"dropout": rng}
      return self.model.apply({"params": params}, *inputs, train, method=method, rngs=rngs)

    def draw(params):
      return run(params, out["tokens"], method="draw")

    def near(pictures):
      l1, l2 = jnp.abs(pictures - target).mean(), losses.mse(pictures, target)
      perceptual, metrics = self.critics.perceptual(frozen, pictures, target)
      metrics |= {"l1": l1, "l2": l2, "psnr": 10 * jnp.log10(4 / l2)}
      return weights["l1"] * l1 + weights["l2"] * l2 + perceptual, metrics

    out = run(params, images, batch["text"], method="read")
    judged &= train
    loss, metrics = self.critics.compare(params, target, draw, near, last="out", judged=judged)
    vq = out["codebook_loss"] + self.net.beta * out["commit"]
    clip = losses.contrastive_loss(out["image"], out["text"], out["scale"])
    logits = out["image"] @ out["text"].T  # [b b]
    right = jnp.diagonal(logits) >= logits.max(1)  # a repeated caption is no mistake
    offsets = jnp.arange(self.net.codebooks) * self.net.entries
    metrics |= {"vq": vq, "commit": out["commit"], "clip": clip, "retrieval": right.mean()}
    metrics |= {"scale": out["scale"], "codes": out["indices"] + offsets}
    return loss + weights["vq"] * vq + weights["clip"] * clip, metrics
