"""How Janus reads pictures: features of a frozen SigLIP2 through an MLP, in the places of tokens.

Tar paper Sec. 4.3, after arXiv 2410.13848 Sec. 3.1, whose encoder is SigLIP-L.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from tarjax.models.layers import Array, Linear, lecun
from tarjax.models.siglip2 import VisionConfig, VisionTower
from tarjax.sharding import shard


class Reader(nn.Module):
  """Pictures -> vectors as wide as the language model's rows.

  `tower` holds the SigLIP2's blocks but for the last (hidden state -2), `projector` the MLP.
  """

  cfg: VisionConfig
  width: int
  dtype: str = "float32"

  def setup(self):
    self.tower = VisionTower(self.cfg, blocks=self.cfg.depth - 1, post_norm=False, head=False)
    self.projector = Projector(self.width, self.dtype)

  def __call__(self, images: Array) -> Array:
    """float[b y x 3] in [-1, 1] -> float[b n d], n patches."""
    return self.projector(self.tower(images)[0])


class Projector(nn.Module):
  """Linear, GELU (exact), Linear, with biases: float[b n k] -> float[b n d]."""

  width: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    k, d = x.shape[-1], self.width
    make: Any = {"bias": True, "dtype": jnp.dtype(self.dtype), "init": lecun}
    x = Linear("bnk,kd->bnd", (k, d), ("embed", "mlp"), name="fc1", **make)(x)
    x = shard(nn.gelu(x, approximate=False), "batch", "length", "act_mlp")
    return Linear("bnk,kd->bnd", (d, d), ("mlp", "embed"), name="fc2", **make)(x)


def insert(embeds: Array, places: Array, vectors: Array) -> Array:
  """Puts vectors in their places among the rows of words.

  Args:
    embeds: float[b l d].
    places: int32[b l]; k > 0 takes the k-th vector of the row, 0 none.
    vectors: float[b m d].

  Returns:
    float[b l d] of the dtype of `embeds`.
  """
  taken = jnp.take_along_axis(vectors, jnp.maximum(places - 1, 0)[..., None], 1)
  return jnp.where(places[..., None] > 0, taken.astype(embeds.dtype), embeds)
