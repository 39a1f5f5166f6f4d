"""TA-Tok: text-aligned visual tokens that rebuild a frozen SigLIP2's features (paper Sec. 3.1).

L = (1 - cos(rec, teacher)) + codebook term (Eq. 1-3). Trained: encoder, bottleneck, W, decoder,
task layers. Frozen: the LLM's embedding rows E and the teacher. One pool scale per step.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarjax import losses
from tarjax.models.siglip2 import VisionTower
from tarjax.models.ta_tok import TaTok, TaTokConfig, pool
from tarjax.models.vq import select_codebook
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

  def start(self, params, frozen, load, workdir):
    """Chooses E's rows among the LLM's embeddings (paper Sec. 3.1) and records which they are."""
    choice = self.config.codebook
    table = np.asarray(load(choice.llm)["embed"]["embedding"], np.float32)
    ids = select_codebook(
      table[: choice.candidates], self.net.codes, choice.metric, choice.direction
    )
    np.save(Path(workdir) / "selected_token_ids.npy", ids)
    rows = table[ids] * choice.get("scale", 1.0)
    return params, dict(frozen, embedding=rows)

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
  """Trained parameters + frozen E -> the parameters of a `TaTok` module."""
  return dict(params, quantizer=dict(params["quantizer"], embedding=frozen["embedding"]))
