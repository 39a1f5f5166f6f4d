"""TA-Tok: text-aligned visual tokens that rebuild a frozen SigLIP2's features (paper Sec. 3.1).

L = (1 - cos(rec, teacher)) + codebook term (Eq. 1-3). Trained: encoder, bottleneck, W, decoder,
task layers. Frozen: the LLM's embedding rows E and the teacher. One pool scale per step. With
model.codebook="table" there is no E, and the codebook itself is trained (Table 9).
"""

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tarjax import losses
from tarjax.models.siglip2 import VisionTower, unit
from tarjax.models.ta_tok import SCALES, TaTok, TaTokConfig, pool
from tarjax.models.vq import select_codebook
from tarjax.sharding import replicated
from tarjax.tasks.inputs import draw_scale, pixels
from tarjax.tasks.least_squares import directions, follow, solve

FIT_PICTURES, FIT_TOKENS, FIT_ROUNDS = 512, 20_000, 15


class Task:
  """Batches are `images`: image uint8[b y x 3]."""

  def __init__(self, config):
    self.config = config
    self.net = TaTokConfig(**config.model)
    self.model: Any = TaTok(self.net)
    encoder = self.net.encoder
    self.teacher: Any = VisionTower(encoder, blocks=self.net.blocks, post_norm=False, head=False)
    self.beta = config.get("beta", 1.0)

  def _images(self):
    side = self.net.encoder.image
    return jnp.zeros((1, side, side, 3))

  def init(self, rng):
    params = dict(self.model.init(rng, self._images(), scale=1)["params"])
    params["quantizer"] = {k: v for k, v in params["quantizer"].items() if k != "embedding"}
    return params

  def init_frozen(self, rng):
    quantizer = self.model.init(rng, self._images(), scale=1)["params"]["quantizer"]
    teacher = self.teacher.init(rng, self._images())["params"]
    return {"teacher": teacher} | {k: quantizer[k] for k in ("embedding",) if k in quantizer}

  def start(self, params, frozen, load, workdir, batch):
    """Chooses E's rows among the LLM's embeddings (paper Sec. 3.1) and records which they are.

    With `config.codebook.fit`, the bottleneck starts at a least-squares fit of that many
    directions of the teacher's features, see `tasks.least_squares`.
    """
    if self.net.codebook == "table":
      return params, frozen
    choice = self.config.codebook
    table = np.asarray(load(choice.llm)["embed"]["embedding"], np.float32)
    ids = select_codebook(
      table[: choice.candidates], self.net.codes, choice.metric, choice.direction
    )
    np.save(Path(workdir) / "selected_token_ids.npy", ids)
    frozen = dict(frozen, embedding=table[ids] * choice.get("scale", 1.0))
    if choice.get("fit", 0):
      images = batch(-(-FIT_PICTURES // self.config.batch))["image"]
      params = self._fitted(dict(params), frozen, images, choice.fit)
    return params, frozen

  def _fitted(self, params, frozen, images, count: int):
    """The bottleneck and the decoder's last layer, solved for on uint8[n y x 3]."""
    if self.net.l2_normalized:
      raise ValueError("config.codebook.fit is for codes of any length, not for l2_normalized")
    mesh = jax.tree.leaves(params)[0].sharding.mesh

    def read(function):
      """`function` of the model, the images and a scale, for tokens drawn by config.scales."""

      @functools.partial(jax.jit, out_shardings=replicated(mesh))
      def run(params, frozen, images):
        whole = {"params": merge(params, frozen)}
        of = functools.partial(self.model.apply, whole, pixels(images), method=function)
        return {s: of(scale=s) for s in SCALES}

      parts = [run(params, frozen, part) for part in np.array_split(images, 8)]
      rng, drawn = np.random.default_rng(0), []
      for scale, weight in sorted(self.config.scales.items()):
        x = np.concatenate([np.asarray(part[int(scale)]) for part in parts])
        x = x.reshape(-1, x.shape[-1])
        share = weight / sum(self.config.scales.values())
        drawn.append(x[rng.integers(len(x), size=int(share * FIT_TOKENS))])
      return np.concatenate(drawn)

    def inputs(model, images, scale):
      return nn.tanh(model.encode_task(pool(model.features(images), scale)))

    def outputs(model, images, scale):
      quant = model.quantize(model.features(images), scale)["quant"]
      return nn.tanh(model.decode_task1(model.decoder(model.out_linear(quant))[0]))

    def wanted(model, images, scale):
      x = unit(pool(model.features(images), scale))
      return x * x.shape[-1] ** 0.5  # of the size that a de-tokenizer's positions have

    target, x = read(wanted), read(inputs)
    kernel, bias = solve(x, directions(target, count, self.net.width))
    params["in_linear"] = {"kernel": kernel, "bias": bias}
    kernel, bias = follow(frozen["embedding"], (x @ kernel + bias)[:, :count], FIT_ROUNDS)
    rest = self.net.width - count
    proj = {"kernel": np.pad(kernel, ((0, 0), (0, rest))), "bias": np.pad(bias, (0, rest))}
    params["quantizer"] = dict(params["quantizer"], proj=proj)
    kernel, bias = solve(read(outputs), target)
    params["decode_task2"] = {"kernel": kernel, "bias": bias}
    return params

  def static(self, step):
    return {"scale": draw_scale(self.config, step)}

  def loss(self, params, frozen, batch, rng, *, train, scale):
    """1 - cos to the pooled teacher features, plus the codebook and commitment terms (Eq. 3)."""
    images = pixels(batch["image"])
    whole = merge(params, frozen)
    out = self.model.apply({"params": whole}, images, scale=scale, rng=rng if train else None)
    target = self.teacher.apply({"params": frozen["teacher"]}, images)[0]  # [b l d]
    target = pool(jax.lax.stop_gradient(target), scale)
    rec = losses.cosine_loss(out["rec"], target).mean()
    loss = rec + out["codebook_loss"] + self.beta * out["commit"]
    metrics = {
      "rec_cosine": 1 - rec,
      "commit": out["commit"],
      "codebook_loss": out["codebook_loss"],
      "codes": out["indices"],
    }
    return loss, metrics


def merge(params, frozen):
  """Trained parameters + frozen E, if there is one -> the parameters of a `TaTok` module."""
  if "embedding" not in frozen:
    return params
  return dict(params, quantizer=dict(params["quantizer"], embedding=frozen["embedding"]))
