"""The depth transformer: the sub-codes of one place, one after another (arXiv 2502.20321 Sec. 3.4).

The Hybrid representation has m sub-codes at every place of a picture. The language model sees one
vector per place, made of all m by `embed`, and says one hidden state, from which a small
transformer over [hidden state, sub-code 1, .. m-1] draws the m sub-codes. Its blocks are Qwen2's;
it has one output layer per sub-codebook, since their entries have nothing in common.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tarjax.models.attention import rotary_table
from tarjax.models.layers import Array, Embed, Linear, RMSNorm, normal, zeros
from tarjax.models.qwen2 import Block, Qwen2Config
from tarjax.models.siglip2 import unit
from tarjax.models.transformer import init_cache, stack
from tarjax.models.unitok import picked
from tarjax.sharding import named, shard

MERGES = ("concat", "sum")


@dataclasses.dataclass(frozen=True)
class DepthHeadConfig:
  """Sizes; `codes`, `codebooks` and `code_width` are those of the UniTok.

  Attributes:
    width: of the language model's hidden states, and of this transformer.
    mlp: 0 means 4 x width.
    merge: how the vectors of a place's sub-codes become one: side by side, or their sum.
  """

  width: int
  codes: int = 32_768
  codebooks: int = 8
  code_width: int = 64
  depth: int = 3
  heads: int = 12
  mlp: int = 0
  merge: str = "concat"
  theta: float = 1e4
  eps: float = 1e-5
  dtype: str = "float32"
  remat: str = "none"

  def __post_init__(self):
    if self.codebooks < 2:
      raise ValueError("one sub-codebook needs no depth head: its codes are words")
    if self.codes % self.codebooks or self.code_width % self.codebooks:
      raise ValueError(
        f"codes={self.codes} and code_width={self.code_width} do not divide into "
        f"codebooks={self.codebooks}"
      )
    if self.width % self.heads:
      raise ValueError(f"width={self.width} does not divide into heads={self.heads}")
    if self.merge not in MERGES:
      raise ValueError(f"merge={self.merge!r} is none of {MERGES}")

  @property
  def entries(self) -> int:
    """Of one sub-codebook."""
    return self.codes // self.codebooks

  @property
  def blocks(self) -> Qwen2Config:
    """The transformer as a Qwen2's."""
    sizes: dict[str, Any] = {"width": self.width, "depth": self.depth, "heads": self.heads}
    sizes |= {"kv_heads": self.heads, "head_dim": self.width // self.heads}
    sizes |= {"mlp": self.mlp or 4 * self.width, "theta": self.theta, "eps": self.eps}
    return Qwen2Config(**sizes, dtype=self.dtype, remat=self.remat)


class SubHeads(nn.Module):
  """One output layer per sub-codebook."""

  codebooks: int
  entries: int
  width: int
  dtype: jnp.dtype

  def setup(self):
    m, e, d = self.codebooks, self.entries, self.width
    init = named(normal(), None, "act_embed", "vocab")
    self.kernel = self.param("kernel", init, (m, d, e), jnp.float32)
    self.bias = self.param("bias", named(zeros, None, "vocab"), (m, e), jnp.float32)

  def __call__(self, x: Array) -> Array:
    """float[b m d] -> float32[b m e]."""
    kernel = jnp.asarray(self.kernel, self.dtype)
    return jnp.einsum("bmd,mde->bme", x, kernel).astype(jnp.float32) + self.bias

  def at(self, x: Array, k: Array) -> Array:
    """The k-th of them alone: float[b d] -> float32[b e]."""
    kernel = jnp.asarray(self.kernel, self.dtype)[k]
    return jnp.einsum("bd,de->be", x, kernel).astype(jnp.float32) + jnp.asarray(self.bias)[k]


class DepthHead(nn.Module):
  """p(sub-code k | hidden state, sub-codes before k), and what a place is to the language model."""

  config: DepthHeadConfig

  def setup(self):
    c, dtype, m = self.config, jnp.dtype(self.config.dtype), self.config.codebooks
    d, part = c.width, c.code_width // m
    shape, init = (m, c.entries, part), named(normal(), None, "codebook", "channels")
    self.codebooks = self.param("codebooks", init, shape, jnp.float32)
    wide = c.code_width if c.merge == "concat" else part
    axes, make = ("act_embed", "embed"), {"bias": True, "dtype": dtype}
    self.fc1 = Linear("bld,dk->blk", (wide, d), axes, **make)
    self.fc2 = Linear("bld,dk->blk", (d, d), ("embed", "act_embed"), **make)
    self.before = Embed((m - 1) * c.entries, d, dtype)  # the last sub-code is never fed
    blocks = stack(Block, c.depth, c.remat, in_axes=(*[nn.broadcast] * 3, 0, nn.broadcast))
    self.blocks = blocks(c.blocks)
    self.norm = RMSNorm(c.eps)
    self.heads = SubHeads(m, c.entries, d, dtype)

  def embed(self, ids: Array) -> Array:
    """The sub-codes of places int32[b l m] -> inputs of the language model float[b l d].

    Their vectors are the parameter "codebooks" float32[m e c], made unit vectors: UniTok's
    "quantizer/codebooks" may be put there.
    """
    rows = picked(unit(jnp.asarray(self.codebooks)), jnp.maximum(ids, 0))  # [b l m*c]
    if self.config.merge == "sum":
      rows = rows.reshape(*ids.shape, -1).sum(-2)
    return self.fc2(nn.gelu(self.fc1(rows), approximate=True))

  def __call__(self, hidden: Array, targets: Array) -> Array:
    """Teacher-forced logits.

    Args:
      hidden: float[b l d], what the language model says at the places before.
      targets: int32[b l m], the sub-codes; those of a place that is not counted may be negative.

    Returns:
      float32[b l m e]; entry k predicts sub-code k.

    Raises:
      ValueError: another number of sub-codes.
    """
    c, (b, l, m) = self.config, targets.shape
    if m != c.codebooks:
      raise ValueError(f"{m} sub-codes at a place, the depth head has {c.codebooks}")
    if self.is_initializing():
      self.embed(targets)
    offsets = jnp.arange(m - 1) * c.entries
    before = self.before(jnp.maximum(targets[..., :-1], 0) + offsets)  # [b l m-1 d]
    x = jnp.concatenate([hidden.astype(before.dtype)[:, :, None], before], 2).reshape(b * l, m, -1)
    x = shard(x, "batch", "length", "act_embed")  # [b*l m d]
    rotary = rotary_table(jnp.arange(m)[None], c.blocks.head_dim, c.theta)
    x, _ = self.blocks(x, None, None, rotary, None, None)
    return self.heads(self.norm(x)).reshape(b, l, m, -1)

  def step(self, hidden: Array, last: Array, cache: Any, k: Array) -> tuple[Array, Any]:
    """One sub-code of one place.

    Args:
      hidden: float[b d].
      last: int32[b], sub-code k - 1; not read when k is 0.
      cache: from `empty_cache`.
      k: int32[], which sub-code comes.

    Returns:
      float32[b e], the logits of sub-code k, and the new cache.
    """
    c = self.config
    row = self.before(jnp.maximum(last + (k - 1) * c.entries, 0))  # [b d]
    x = jnp.where(k == 0, hidden.astype(row.dtype), row)[:, None]  # [b 1 d]
    rotary = rotary_table(jnp.reshape(k, (1, 1)), c.blocks.head_dim, c.theta)
    seen = (jnp.arange(c.codebooks) <= k)[None, None]  # [1 1 m]
    x, (cache, _) = self.blocks(x, seen, None, rotary, cache, k)
    return self.heads.at(self.norm(x)[:, 0], k), cache


def empty_cache(config: DepthHeadConfig, batch: int) -> dict[str, jax.Array]:
  """A KV cache for the sub-codes of one place: {"k", "v"}, each zeros float[n b m h k]."""
  c = config.blocks
  return init_cache(
    c.depth, batch, config.codebooks, c.kv_heads, c.head_dim, jnp.dtype(config.dtype)
  )
