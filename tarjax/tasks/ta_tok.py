"""TA-Tok: text-aligned visual tokens that rebuild a frozen SigLIP2's features (paper Sec. 3.1).

L = (1 - cos(rec, teacher)) + codebook term (Eq. 1-3). Trained: encoder, bottleneck, W, decoder,
task layers. Frozen: the LLM's embedding rows E and the teacher. One pool scale per step.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarjax import losses
from tarjax.models.siglip2 import VisionTower, unit
from tarjax.models.ta_tok import SCALES, TaTok, TaTokConfig, pool
from tarjax.models.vq import select_codebook
from tarjax.sharding import replicated
from tarjax.tasks.inputs import draw_scale, pixels


class Task:
  """Batches are `images`: image uint8[b y x 3]."""

  def __init__(self, config):
    self.config = config
    self.net = TaTokConfig(**config.model)
    self.model: Any = TaTok(self.net)
    encoder = self.net.encoder
    self.teacher: Any = VisionTower(encoder, blocks=self.net.blocks, post_norm=False, head=False)
    self.beta = config.get("beta", 1.0)
    self.match = config.get("codebook", {}).get("match", 0.0)
    self.couples = "config.codebook.match compares moments of the batch" if self.match else ""

  def _images(self):
    side = self.net.encoder.image
    return jnp.zeros((1, side, side, 3))

  def init(self, rng):
    params = dict(self.model.init(rng, self._images(), scale=1)["params"])
    params["quantizer"] = {k: v for k, v in params["quantizer"].items() if k != "embedding"}
    return params

  def init_frozen(self, rng):
    full = self.model.init(rng, self._images(), scale=1)["params"]
    teacher = self.teacher.init(rng, self._images())["params"]
    return {"teacher": teacher, "embedding": full["quantizer"]["embedding"]}

  def start(self, params, frozen, load, workdir, batch):
    """Chooses E's rows among the LLM's embeddings (paper Sec. 3.1) and records which they are.

    With `config.codebook.fit`, W and b start where E W + b has the mean and covariance of what
    the first batch would quantise, so that all codes are within reach.
    """
    choice = self.config.codebook
    table = np.asarray(load(choice.llm)["embed"]["embedding"], np.float32)
    ids = select_codebook(
      table[: choice.candidates], self.net.codes, choice.metric, choice.direction
    )
    np.save(Path(workdir) / "selected_token_ids.npy", ids)
    frozen = dict(frozen, embedding=table[ids] * choice.get("scale", 1.0))
    if choice.get("fit", False):
      kernel, bias = match_moments(frozen["embedding"], self._unquantised(params, frozen, batch()))
      proj = {"kernel": kernel, "bias": bias}
      params = dict(params, quantizer=dict(params["quantizer"], proj=proj))
    return params, frozen

  def _unquantised(self, params, frozen, batch):
    """What the quantiser is given for a batch, at all scales: float32[t w]."""

    def project(model, images):
      features = model.features(images)
      z = [model.project(features, s).reshape(-1, self.net.width) for s in SCALES]
      return jnp.concatenate(z)

    mesh = jax.tree.leaves(params)[0].sharding.mesh

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def unquantised(params, frozen, images):
      whole = {"params": merge(params, frozen)}
      z = self.model.apply(whole, pixels(images), method=project)
      return unit(z) if self.net.l2_normalized else z

    return np.asarray(unquantised(params, frozen, batch["image"]))

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
    if self.match:
      book = self.model.apply({"params": whole}, method="codebook")
      loss += self.match * moments_apart(book, out["z"].reshape(-1, self.net.width))
    metrics = {
      "rec_cosine": 1 - rec,
      "commit": out["commit"],
      "codebook_loss": out["codebook_loss"],
      "codes": out["indices"],
    }
    return loss, metrics


def match_moments(rows: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The map under which `rows` have the mean and covariance of `target`.

  Args:
    rows: float[e d].
    target: float[t w].

  Returns:
    kernel float32[d w] and bias float32[w] of rows @ kernel + bias.
  """
  x, y = np.asarray(rows, np.float64), np.asarray(target, np.float64)
  size, basis = np.linalg.eigh(np.cov(x.T))
  whiten = basis / np.sqrt(np.maximum(size, 1e-6 * size.max()))
  size, basis = np.linalg.eigh(np.cov(y.T))
  colour = np.sqrt(np.maximum(size, 0))[:, None] * basis.T
  kernel = whiten @ colour  # the largest directions of one to those of the other
  bias = y.mean(0) - x.mean(0) @ kernel
  return kernel.astype(np.float32), bias.astype(np.float32)


def moments_apart(rows, target):
  """How far float32[e d] is from float32[t d] in mean and covariance, relative to its variance.

  The target is a constant; float32[].
  """
  target = jax.lax.stop_gradient(target)
  mean = rows.mean(0) - target.mean(0)
  x, y = rows - rows.mean(0), target - target.mean(0)
  size = jnp.square(y).sum(-1).mean()
  cov = (x.T @ x) / len(x) - (y.T @ y) / len(y)
  return jnp.square(mean).sum() / size + jnp.square(cov).sum() / size**2


def merge(params, frozen):
  """Trained parameters + frozen E -> the parameters of a `TaTok` module."""
  return dict(params, quantizer=dict(params["quantizer"], embedding=frozen["embedding"]))
