"""Qwen2.5, the language model that becomes Tar (paper Sec. 3.3).

Pre-norm blocks of grouped-query attention with rotary positions and a gated MLP; biases on q, k and
v only. Image words are ordinary rows of the embedding table, so nothing here knows about images.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from tarjax.models.attention import rotary_table
from tarjax.models.layers import Array, Embed, Linear, RMSNorm, normal
from tarjax.models.transformer import Attention, GatedMlp, init_cache, stack
from tarjax.sharding import shard


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
  """Sizes of a Qwen2 model; the defaults are Qwen2.5-0.5B.

  `vocab` is the number of rows of the table, padding rows included. `remat` is "none"
  or a policy by name, see `transformer.remat_policy`.
  """

  vocab: int = 151_936
  width: int = 896
  depth: int = 24
  heads: int = 14
  kv_heads: int = 2
  head_dim: int = 64
  mlp: int = 4864
  theta: float = 1e6
  eps: float = 1e-6
  tied: bool = True
  dtype: str = "float32"
  remat: str = "none"

  def __post_init__(self):
    if self.heads % self.kv_heads:
      raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} is odd; rotary positions need an even one")
    if not (0 < self.theta < math.inf and 0 <= self.eps < math.inf):  # NaN is neither
      raise ValueError(f"theta={self.theta} and eps={self.eps} must be positive numbers")


class Block(nn.Module):
  """x + attention(norm1 x), then h + mlp(norm2 h)."""

  config: Qwen2Config
  collect: bool = False

  @nn.compact
  def __call__(self, x, mask, segments, rotary, cache, index):
    """float[b l d] -> (float[b l d], (cache, the block's input or None))."""
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    attn = Attention(c.heads, c.kv_heads, c.head_dim, True, False, dtype, name="attn")
    before = x if self.collect else None
    y = RMSNorm(c.eps, name="norm1")(x)
    sight: Any = {"mask": mask, "causal": mask is None, "segments": segments}
    y, cache = attn(y, **sight, rotary=rotary, cache=cache, index=index)
    x = checkpoint_name(shard(x + y, "batch", "length", "act_embed"), "resid")  # [b l d]
    y = GatedMlp(c.mlp, dtype, name="mlp")(RMSNorm(c.eps, name="norm2")(x))
    return shard(x + y, "batch", "length", "act_embed"), (cache, before)


class Qwen2(nn.Module):
  """The decoder. `collect` makes `__call__` return hidden states in the place of the cache."""

  config: Qwen2Config
  collect: bool = False

  def setup(self):
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    axes = (*[nn.broadcast] * 3, 0, nn.broadcast)
    self.table = Embed(c.vocab, c.width, dtype, normal(c.width**-0.5), name="embed")
    self.blocks = stack(Block, c.depth, c.remat, in_axes=axes)(c, self.collect)
    self.norm = RMSNorm(c.eps)
    if not c.tied:
      shape, axes = (c.width, c.vocab), ("act_embed", "vocab")
      self.lm_head = Linear("bld,dv->blv", shape, axes, dtype=dtype)

  def embed(self, ids: Array) -> Array:
    """Word ids int32[b l] -> embeddings float[b l d]."""
    return self.table(ids)

  def __call__(
    self,
    ids: Array | None = None,
    *,
    embeds: Array | None = None,
    positions: Array | None = None,
    mask: Array | None = None,
    segments: Array | None = None,
    cache: Any = None,
    index: Array | int | None = None,
  ) -> tuple[Array, Any]:
    """Runs the blocks.

    Args:
      ids: int32[b l]; or give `embeds`.
      embeds: float[b l d], in the place of `embed(ids)`.
      positions: int32[b l]; None counts from 0.
      mask: bool[b l s], True is seen; None is causal, which needs no cache.
      segments: int32[b l], 0 is padding: with mask None, a position sees its segment only.
      cache: {"k", "v": float[n b s g k]} from `empty_cache`, or None.
      index: int32[], where in the cache the l new entries go.

    Returns:
      hidden float[b l d] after the final norm, and the new cache (None without one). With
      `collect`, float[n+1 b l d] instead of the cache: the embeddings, the blocks' outputs except
      the last, and hidden.

    Raises:
      ValueError: both or none of ids and embeds, or a cache without mask and index.
    """
    if (ids is None) == (embeds is None):
      raise ValueError("Qwen2 takes either ids or embeds")
    if cache is not None and (mask is None or index is None):
      raise ValueError("Qwen2 with a cache needs a mask and an index")
    x = jnp.asarray(embeds, self.config.dtype) if ids is None else self.table(ids)
    x = shard(x, "batch", "length", "act_embed")  # [b l d]
    if positions is None:
      positions = jnp.arange(x.shape[1])[None]
    rotary = rotary_table(positions, self.config.head_dim, self.config.theta)
    x, (cache, states) = self.blocks(x, mask, segments, rotary, cache, index)
    x = self.norm(x)
    if self.is_initializing():
      self.logits(x)
    return (x, jnp.concatenate([states, x[None]])) if self.collect else (x, cache)

  def logits(self, hidden: Array) -> Array:
    """Hidden states float[b l d] -> float32[b l v], through the table itself when it is tied."""
    y = self.table.attend(hidden) if self.config.tied else self.lm_head(hidden)
    return shard(y.astype(jnp.float32), "batch", "length", "act_vocab")


def head_table(config: Qwen2Config, params: Any) -> Array:
  """What `logits` multiplies with, seen as float32[v d]."""
  return params["embed"]["embedding"] if config.tied else params["lm_head"]["kernel"].T


def empty_cache(config: Qwen2Config, batch: int, length: int) -> dict[str, jax.Array]:
  """A KV cache for `length` positions: {"k", "v"}, each zeros float[n b s g k]."""
  c = config
  return init_cache(c.depth, batch, length, c.kv_heads, c.head_dim, jnp.dtype(c.dtype))
