"""AR-DTok: draws an image's VQ codes from TA-Tok's features, one code at a time (paper Sec. 3.2).

The "llama-abs" family: a causal transformer over [condition, codes] with one learned table of
absolute positions added at the bottom. Condition token j takes row j and code j takes row k + j,
where k is the number of condition tokens given, so codes move when the condition is shorter.

With `rotary` it is LlamaGen (arXiv 2406.06525), which draws from a class: no table, but half of
each head's pairs turns with the row of a code and half with its column.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from tarjax.models.layers import Array, Embed, Linear, RMSNorm, normal, zeros
from tarjax.models.transformer import Attention, GatedMlp, init_cache, stack
from tarjax.sharding import named, shard

THETA = 1e4  # base of the rotary positions
# name: depth, heads, width; heads are 64 wide
FAMILY = {
  "S": (12, 6, 384),
  "B": (12, 12, 768),
  "L": (24, 16, 1024),
  "LP": (30, 20, 1280),
  "XL": (36, 20, 1280),
  "XXL": (48, 24, 1536),
  "XXXL": (48, 40, 2560),
}


def mlp_width(width: int, multiple: int = 256, factor: float | None = None) -> int:
  """Two thirds of 4 x width (times factor), rounded up to a multiple: 1280 -> 3584."""
  hidden = int(2 * (4 * width) / 3)
  hidden = hidden if factor is None else int(factor * hidden)
  return -(-hidden // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class ArDtokConfig:
  """Sizes of an AR de-tokenizer.

  Attributes:
    kv_heads: 0 means as many as heads.
    mlp: 0 means `mlp_width(width)`.
    vocab: number of image codes.
    cond: "features" (float[b k c]), "indices" (int32[b k]) or "class" (int32[b], one token).
    cond_width: c of "features".
    cond_vocab: number of indices or classes, without the null row.
    cond_length: most condition tokens, and with `length` the size of the position table.
    length: number of codes of an image, T.
    fixed_positions: sines and cosines in the place of a learned table.
    rotary: rotary positions of a square picture in the place of any table.
    cond_dropout: how often training replaces a sample's condition by the null condition; with 0,
      the table of "indices" and "class" has no null row.
    init_std: of the weights at random; 0.02 suits 1280 channels, and fewer learn faster from more.
  """

  width: int = 384
  depth: int = 12
  heads: int = 6
  kv_heads: int = 0
  mlp: int = 0
  vocab: int = 16_384
  cond: str = "features"
  cond_width: int = 1152
  cond_vocab: int = 0
  cond_length: int = 729
  length: int = 256
  fixed_positions: bool = False
  rotary: bool = False
  token_dropout: float = 0.1
  resid_dropout: float = 0.1
  ffn_dropout: float = 0.1
  cond_dropout: float = 0.1
  init_std: float = 0.02
  eps: float = 1e-5
  dtype: str = "float32"
  remat: str = "none"

  def __post_init__(self):
    kv_heads = self.kv_heads or self.heads
    if self.width % self.heads or self.heads % kv_heads:
      raise ValueError(f"width={self.width}, heads={self.heads}, kv_heads={kv_heads} do not divide")
    if self.cond not in ("features", "indices", "class"):
      raise ValueError(f"cond={self.cond!r} is none of features, indices, class")
    if self.cond == "class" and self.cond_length != 1:
      raise ValueError(f"cond='class' is one token, but cond_length={self.cond_length}")
    if self.cond != "features" and self.cond_vocab < 1:
      raise ValueError(f"cond={self.cond!r} needs cond_vocab, the number of rows of its table")
    if self.rotary and (math.isqrt(self.length) ** 2 != self.length or self.head_dim % 4):
      raise ValueError(f"rotary: length={self.length} is no square, or head_dim no multiple of 4")
    object.__setattr__(self, "kv_heads", kv_heads)
    object.__setattr__(self, "mlp", self.mlp or mlp_width(self.width))

  @classmethod
  def of(cls, name: str, **fields) -> "ArDtokConfig":
    """A member of the family by name: ArDtokConfig.of("XL", length=1024)."""
    if name not in FAMILY:
      raise ValueError(f"AR-DTok size {name!r} is none of {list(FAMILY)}")
    depth, heads, width = FAMILY[name]
    return cls(depth=depth, heads=heads, width=width, **fields)

  @property
  def head_dim(self) -> int:
    return self.width // self.heads

  @property
  def rows(self) -> int:
    """Rows of the position table; the last code is never fed."""
    return self.length + self.cond_length - 1


def null_condition(config: ArDtokConfig, cond: Array) -> Array:
  """The condition that says nothing, with the shape of `cond` (paper Sec. 3.2).

  Zeros for features, whose projection's bias stays; the last row of the table otherwise.

  Raises:
    ValueError: a model trained without condition dropout has no null row.
  """
  if config.cond == "features":
    return jnp.zeros_like(cond)
  if not config.cond_dropout:
    raise ValueError(f"cond={config.cond!r} with cond_dropout=0 has no null condition")
  return jnp.full_like(cond, config.cond_vocab)


def sine_table(rows: int, width: int) -> np.ndarray:
  """float32[rows width]: sines in the first half of the channels, then cosines; base 10000."""
  freq = 1.0 / 10_000 ** (np.arange(width // 2, dtype=np.float64) / (width / 2))
  angle = np.arange(rows, dtype=np.float64)[:, None] * freq
  return np.concatenate([np.sin(angle), np.cos(angle)], 1).astype(np.float32)


def grid_table(config: ArDtokConfig) -> tuple[np.ndarray, np.ndarray]:
  """Cosines and sines of all that is fed, float32[rows k/2] each: first rows', then columns'.

  Both are 0 for the condition, whose queries and keys vanish with it, as in the original.
  """
  side, quarter = math.isqrt(config.length), config.head_dim // 4
  freq = THETA ** (-np.arange(quarter) / quarter)
  angle = np.arange(side)[:, None] * freq  # [side k/4]
  angle = np.concatenate([angle.repeat(side, 0), np.tile(angle, (side, 1))], 1)[:-1]
  none = np.zeros((config.cond_length, 2 * quarter))
  cos, sin = (np.concatenate([none, turn(angle)]) for turn in (np.cos, np.sin))
  return cos.astype(np.float32), sin.astype(np.float32)


def resize_table(table: np.ndarray, cond_length: int, length: int) -> np.ndarray:
  """The position table of another resolution: float32[k+T-1 d] -> float32[k+T'-1 d].

  Rows of the condition stay. Those of the codes, as they lie behind the longest condition, are a
  square picture without its last place, which is taken to be like the one before: it is stretched
  bilinearly. A code behind a shorter condition takes other rows, and for it this is approximate.

  Raises:
    ValueError: numbers of codes that are no squares.
  """
  before = len(table) - cond_length + 1
  sides = math.isqrt(max(before, 0)), math.isqrt(length)
  if before < 1 or (sides[0] ** 2, sides[1] ** 2) != (before, length):
    raise ValueError(
      f"a position table of {len(table)} rows, {cond_length} of them the condition's, cannot be "
      f"resized from {before} to {length} codes: both must be squares"
    )
  codes = np.asarray(table[cond_length:], np.float32)
  codes = np.concatenate([codes, codes[-1:]]) if len(codes) else np.asarray(table[-1:], np.float32)
  square = codes.reshape(sides[0], sides[0], -1)  # [y x d]
  wide = jax.image.resize(square, (sides[1], sides[1], square.shape[-1]), "linear")
  rows = np.asarray(wide).reshape(length, -1)[:-1]
  return np.concatenate([np.asarray(table[:cond_length], np.float32), rows])


class Conditions(nn.Module):
  """A table that every device has, for the null row makes its length odd: int32[...] -> [... d]."""

  rows: int
  width: int
  dtype: jnp.dtype
  init: Any

  @nn.compact
  def __call__(self, ids):
    init = named(self.init, "condition", "act_embed")
    table = self.param("embedding", init, (self.rows, self.width), jnp.float32)
    return table[ids].astype(self.dtype)  # in this order, gradients are summed in float32


class Block(nn.Module):
  """x + attention(norm1 x), then h + mlp(norm2 h), with dropout on both branches."""

  config: ArDtokConfig
  train: bool

  @nn.compact
  def __call__(self, x, mask, rotary, cache, index):
    """float[b l d] -> (float[b l d], cache)."""
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    init = normal(c.init_std)
    attn = Attention(c.heads, c.kv_heads, c.head_dim, False, False, dtype, init, name="attn")
    y = RMSNorm(c.eps, name="norm1")(x)
    sight: Any = {"mask": mask, "causal": mask is None, "rotary": rotary}
    y, cache = attn(y, **sight, cache=cache, index=index)
    x = shard(x + drop(y, c.resid_dropout, self.train), "batch", "length", "act_embed")
    x = checkpoint_name(x, "resid")
    y = GatedMlp(c.mlp, dtype, init, name="mlp")(RMSNorm(c.eps, name="norm2")(x))
    return shard(x + drop(y, c.ffn_dropout, self.train), "batch", "length", "act_embed"), cache


def drop(x: Array, rate: float, train: bool) -> Array:
  """Dropout under the "dropout" key of the module that is being run."""
  return nn.Dropout(rate, deterministic=not train)(x)


class ArDtok(nn.Module):
  """p(code t | condition, codes before t)."""

  config: ArDtokConfig

  @nn.compact
  def __call__(
    self,
    cond: Array | None,
    tokens: Array | None,
    *,
    train: bool = False,
    cache: Any = None,
    index: Array | int = 0,
  ) -> Any:
    """Teacher-forced logits; `prefill` and `step` reach the same lines with a cache.

    Args:
      cond: float[b k c], int32[b k] or int32[b] by `config.cond`, with k <= cond_length.
      tokens: codes int32[b T]; the last one is never fed. T <= length.
      train: condition dropout and dropouts, with the rng "dropout".
      cache: for `prefill` and `step`; with one, all the tokens are fed.
      index: first position of what is fed, int32[].

    Returns:
      float32[b T v]; entry t predicts code t. With a cache, (float32[b v] of the last, cache).
    """
    c, dtype, init = self.config, jnp.dtype(self.config.dtype), normal(self.config.init_std)
    parts, k = [], 0
    if cond is not None:
      x = self.condition(cond, train)  # [b k d]
      k = x.shape[1]
      parts.append(x)
    if tokens is not None:
      fed = tokens if cache is not None else tokens[:, :-1]
      parts.append(Embed(c.vocab, c.width, dtype, init, name="embed")(fed))
    x = drop(jnp.concatenate(parts, 1), c.token_dropout, train)  # [b l d]
    l = x.shape[1]
    if l > c.rows:
      raise ValueError(f"{k} condition tokens and {l - k} codes exceed {c.rows} positions")
    rotary = None
    if c.rotary:
      part = [jax.lax.dynamic_slice_in_dim(jnp.asarray(t), index, l) for t in grid_table(c)]
      rotary = tuple(t[None, :, None] for t in part)  # [1 l 1 k/2]
    else:
      x = x + jax.lax.dynamic_slice_in_dim(self.positions(), index, l).astype(dtype)
    x = shard(x, "batch", "length", "act_embed")
    mask = None  # causal
    if cache is not None:
      mask = (jnp.arange(cache["k"].shape[2]) <= index + jnp.arange(l)[:, None])[None]  # [1 l s]
    axes = (nn.broadcast, nn.broadcast, 0, nn.broadcast)
    blocks = stack(Block, c.depth, c.remat, in_axes=axes)(c, train, name="blocks")
    x, cache = blocks(x, mask, rotary, cache, index)
    x = x[:, -1:] if cache is not None else x[:, k - 1 :]  # [b T d]
    x = RMSNorm(c.eps, name="norm")(x)
    shape, axes = (c.width, c.vocab), ("act_embed", "vocab")
    head = Linear("bld,dv->blv", shape, axes, dtype=dtype, init=zeros, name="head")
    y = shard(head(x).astype(jnp.float32), "batch", "length", "act_vocab")
    return y if cache is None else (y[:, 0], cache)

  def prefill(self, cond: Array, cache: Any) -> tuple[Array, Any]:
    """Condition of k tokens -> (float32[b v] for the first code, cache filled up to k)."""
    return self(cond, None, cache=cache)

  def step(self, tokens: Array, cache: Any, index: Array) -> tuple[Array, Any]:
    """One code int32[b], at position `index` -> (float32[b v] for the next code, cache)."""
    return self(None, tokens[:, None], cache=cache, index=index)

  def condition(self, cond: Array, train: bool) -> Array:
    """Embeds the condition, and in training drops it for a whole sample at a time: float[b k d]."""
    c, dtype, init = self.config, jnp.dtype(self.config.dtype), normal(self.config.init_std)
    if train and c.cond_dropout:
      keep = jax.random.bernoulli(
        self.make_rng("dropout"), 1 - c.cond_dropout, (cond.shape[0],) + (1,) * (cond.ndim - 1)
      )
      cond = jnp.where(keep, cond, null_condition(c, cond))
    if c.cond == "features":
      shape, axes = (c.cond_width, c.width), ("channels", "embed")
      make: Any = {"bias": True, "dtype": dtype, "init": init, "name": "cond"}
      x = Linear("blc,cd->bld", shape, axes, **make)(cond)
    else:
      cond = cond[:, None] if c.cond == "class" else cond
      x = Conditions(c.cond_vocab + bool(c.cond_dropout), c.width, dtype, init, name="cond")(cond)
    if x.shape[1] > c.cond_length:
      raise ValueError(f"{x.shape[1]} condition tokens, but cond_length={c.cond_length}")
    return x

  def positions(self) -> Array:
    """float32[rows d]."""
    c = self.config
    if c.fixed_positions:
      return jnp.asarray(sine_table(c.rows, c.width))
    init = named(normal(c.init_std), "position", "act_embed")
    return self.param("positions", init, (c.rows, c.width), jnp.float32)


def empty_cache(config: ArDtokConfig, batch: int, length: int) -> dict[str, jax.Array]:
  """A KV cache for `length` positions: {"k", "v"}, each zeros float[n b s g k]."""
  c = config
  return init_cache(c.depth, batch, length, c.kv_heads, c.head_dim, jnp.dtype(c.dtype))
