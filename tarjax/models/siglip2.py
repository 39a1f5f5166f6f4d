"""SigLIP2: the fixed-resolution image tower, the text tower, both together, and the NaFlex tower.

TA-Tok's encoder and teacher are image towers; its decoder is a NaFlex tower over tokens. Pre-norm
blocks with biases and tanh GELU, learned positions, no class token; the pooling head is one
attention from a learned probe (arXiv 2303.15343, 2502.14786).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from tarjax.models.layers import Array, Embed, LayerNorm, Linear, lecun, normal, xavier
from tarjax.models.transformer import Attention, Mlp, stack
from tarjax.sharding import named, shard

Grids = Sequence[tuple[int, int]]
Output = tuple[Array, Any, Any]  # features, pooled or None, hidden states or None


@dataclass(frozen=True)
class VisionConfig:
  """Fixed-resolution image tower. so400m-patch14-384 is (1152, 27, 16, 4304, 384, 14)."""

  width: int
  depth: int
  heads: int
  mlp: int
  image: int
  patch: int
  channels: int = 3
  eps: float = 1e-6
  dtype: str = "float32"
  remat: str = "none"

  @property
  def grid(self) -> int:
    """Patches per side; pixels beyond grid * patch are not seen."""
    return self.image // self.patch


@dataclass(frozen=True)
class TextConfig:
  """Text tower; `length` rows of positions, `out` the width of its head (None: `width`)."""

  vocab: int
  width: int
  depth: int
  heads: int
  mlp: int
  length: int
  out: int | None = None
  eps: float = 1e-6
  dtype: str = "float32"
  remat: str = "none"


@dataclass(frozen=True)
class NaFlexConfig:
  """Tower over `channels`-wide tokens on any grid.

  `positions` rows form the square table that is resized to it.
  """

  channels: int
  width: int
  depth: int
  heads: int = 12
  mlp: int = 3072
  positions: int = 256
  eps: float = 1e-6
  dtype: str = "float32"
  remat: str = "none"


class Block(nn.Module):
  """Pre-norm transformer block; with `collect` it also returns its output for stacking."""

  cfg: VisionConfig | TextConfig | NaFlexConfig
  collect: bool = False

  @nn.compact
  def __call__(self, x: Array, mask: Array | None) -> tuple[Array, Array | None]:
    c = self.cfg
    dtype, d = jnp.dtype(c.dtype), x.shape[-1]
    make: Any = {"dtype": dtype, "init": xavier}
    attn = Attention(c.heads, c.heads, d // c.heads, name="attn", **make)
    x = x + attn(LayerNorm(c.eps, name="norm1")(x), mask=mask)[0]
    x = checkpoint_name(x, "resid")  # [b l d]
    x = x + Mlp(c.mlp, name="mlp", **make)(LayerNorm(c.eps, name="norm2")(x))
    x = shard(x, "batch", "length", "act_embed")
    return x, x if self.collect else None


def encode(
  c: VisionConfig | TextConfig | NaFlexConfig,
  x: Array,
  mask: Array | None,
  depth: int,
  collect: bool,
) -> tuple[Array, Array | None]:
  """The blocks: float[b l d] -> float[b l d], and with `collect` all states [n+1 b l d]."""
  if c.width % c.heads:
    raise ValueError(f"width {c.width} does not divide into {c.heads} heads")
  blocks = stack(Block, depth, c.remat)(c, collect, name="blocks")
  last, states = blocks(x, mask)
  return last, None if states is None else jnp.concatenate([x[None], states])


class Head(nn.Module):
  """Attention pooling: float[b l d] -> float[b d], the query is one learned probe."""

  cfg: VisionConfig | NaFlexConfig

  @nn.compact
  def __call__(self, x: Array, mask: Array | None = None) -> Array:
    c, d = self.cfg, x.shape[-1]
    make: Any = {"dtype": jnp.dtype(c.dtype), "init": xavier}
    probe = self.param("probe", named(xavier, None, None, "act_embed"), (1, 1, d), jnp.float32)
    probe = jnp.broadcast_to(probe.astype(x.dtype), (x.shape[0], 1, d))
    attn = Attention(c.heads, c.heads, d // c.heads, name="attn", **make)
    y, _ = attn(probe, context=x, mask=mask)  # [b 1 d]
    y = y + Mlp(c.mlp, name="mlp", **make)(LayerNorm(c.eps, name="norm")(y))
    return y[:, 0]


class VisionTower(nn.Module):
  """Images -> patch features.

  With `blocks=k` only the first k blocks exist; with neither norm nor head the result is hidden
  state k. TA-Tok reads k = depth - 1, so block `depth` holds no parameters there.
  """

  cfg: VisionConfig
  blocks: int | None = None
  post_norm: bool = True
  head: bool = True

  @nn.compact
  def __call__(self, images: Array, collect: bool = False) -> Output:
    """float[b y x 3] in [-1, 1] -> float[b l d], pooled float[b d] or None, states or None.

    States are float[n+1 b l d], embeddings first, and are returned with `collect`.

    Raises:
      ValueError: images of another size than the config's.
    """
    c, (p, g, d) = self.cfg, (self.cfg.patch, self.cfg.grid, self.cfg.width)
    if images.shape[1:] != (c.image, c.image, c.channels):
      raise ValueError(f"images are {images.shape[1:]}, the tower takes {c.image} x {c.image} px")
    seen = images[:, : g * p, : g * p].reshape(-1, g, p, g, p, c.channels)
    seen = seen.swapaxes(2, 3)  # [b y x p q c]
    make: Any = {"bias": True, "dtype": jnp.dtype(c.dtype), "init": lecun, "name": "patch"}
    axes = ("kernel_y", "kernel_x", "conv_in", "embed")
    x = Linear("byxpqc,pqcd->byxd", (p, p, c.channels, d), axes, **make)(seen)
    x = x.reshape(-1, g * g, d)  # [b l d]
    init = named(normal(d**-0.5), "position", "embed")
    x = x + self.param("position", init, (g * g, d), jnp.float32).astype(x.dtype)
    x = shard(x, "batch", "length", "act_embed")
    depth = c.depth if self.blocks is None else self.blocks
    x, states = encode(c, x, None, depth, collect)
    if self.post_norm:
      x = LayerNorm(c.eps, name="norm")(x)
    return x, Head(c, name="head")(x) if self.head else None, states


class TextTower(nn.Module):
  """Token ids -> features; bidirectional, pooled at the last position, padded or not."""

  cfg: TextConfig

  @nn.compact
  def __call__(self, ids: Array, mask: Array | None = None, collect: bool = False) -> Output:
    """int32[b l] -> float[b l d], pooled float[b out], states [n+1 b l d] or None.

    Args:
      ids: at most `length` tokens.
      mask: bool[b l], the tokens that are seen; SigLIP uses none.
      collect: whether to return every hidden state.
    """
    c, dtype, (l, d) = self.cfg, jnp.dtype(self.cfg.dtype), (ids.shape[1], self.cfg.width)
    if l > c.length:
      raise ValueError(f"{l} text tokens, the text tower has {c.length} positions")
    x = Embed(c.vocab, d, dtype, normal(d**-0.5), name="embed")(ids)
    init = named(normal(d**-0.5), "position", "embed")
    x = x + self.param("position", init, (c.length, d), jnp.float32)[:l].astype(x.dtype)
    x, states = encode(c, x, None if mask is None else mask[:, None], c.depth, collect)
    x = LayerNorm(c.eps, name="norm")(x)
    make: Any = {"bias": True, "dtype": dtype, "init": lecun, "name": "head"}
    pooled = Linear("bd,dk->bk", (d, c.out or d), ("embed", "act_embed"), **make)(x[:, -1])
    return x, pooled, states


class Siglip2(nn.Module):
  """Both towers and the two scalars of the sigmoid loss."""

  vision_cfg: VisionConfig
  text_cfg: TextConfig

  def setup(self):
    self.vision = VisionTower(self.vision_cfg)
    self.text = TextTower(self.text_cfg)
    self.logit_scale = self.param("logit_scale", nn.initializers.constant(math.log(10)), ())
    self.logit_bias = self.param("logit_bias", nn.initializers.constant(-10.0), ())

  def embed_images(self, images: Array) -> Array:
    """float[b y x 3] in [-1, 1] -> float32[b d], unit length."""
    return unit(self.vision(images)[1])

  def embed_text(self, ids: Array) -> Array:
    """int32[b l] -> float32[b d], unit length."""
    return unit(self.text(ids)[1])

  def __call__(self, images: Array, ids: Array) -> tuple[Array, Array, Array, Array]:
    """Images and texts -> their embeddings float32[b d], logit_scale and logit_bias float32[].

    A logit is exp(logit_scale) * cosine + logit_bias.
    """
    return self.embed_images(images), self.embed_text(ids), self.logit_scale, self.logit_bias


class NaFlexTower(nn.Module):
  """Tokens on a grid -> features."""

  cfg: NaFlexConfig
  head: bool = True

  @nn.compact
  def __call__(
    self,
    x: Array,
    grids: Grids | None = None,
    mask: Array | None = None,
    collect: bool = False,
  ) -> Output:
    """float[b l c] -> float[b l d], pooled float[b d] or None, states [n+1 b l d] or None.

    Args:
      x: tokens, row-major over their grid, padding last.
      grids: (rows, columns) per example, static; None is one square grid of l tokens for all.
      mask: bool[b l], the tokens that are seen; None sees all.
      collect: whether to return every hidden state.

    Raises:
      ValueError: a wrong token width, or a length that is no square when `grids` is None.
    """
    c, (l, width, d) = self.cfg, (*x.shape[1:], self.cfg.width)
    if width != c.channels:
      raise ValueError(f"tokens are {width} wide, the tower takes {c.channels}")
    make: Any = {"bias": True, "dtype": jnp.dtype(c.dtype), "init": lecun, "name": "patch"}
    x = Linear("blc,cd->bld", (width, d), ("conv_in", "embed"), **make)(x)
    init = named(normal(d**-0.5), "position", "embed")
    table = self.param("position", init, (c.positions, d), jnp.float32)
    grids = [(square_side(l), square_side(l))] if grids is None else grids
    x = x + resize_positions(table, grids, l).astype(x.dtype)
    seen = None if mask is None else mask[:, None]  # [b 1 l]
    x, states = encode(c, x, seen, c.depth, collect)
    x = LayerNorm(c.eps, name="norm")(x)
    return x, Head(c, name="head")(x, seen) if self.head else None, states


def unit(x: Array, eps: float = 1e-12) -> Array:
  """float[... d] -> float32[... d] of unit length, with a finite gradient at zero."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), eps**2))


def square_side(tokens: int) -> int:
  """Side of a square grid; a ValueError names a count that is no square."""
  side = math.isqrt(tokens)
  if side * side != tokens or tokens == 0:
    raise ValueError(f"{tokens} tokens are no square grid")
  return side


def resize_positions(table: Array, grids: Grids, length: int) -> Array:
  """Square table float32[p d] -> float32[b length d], one row per grid.

  Bilinear with antialiasing, half-pixel centres; positions past a grid get its first vector.
  """
  side, d = square_side(table.shape[0]), table.shape[1]
  square = table.reshape(side, side, d)

  def resized(grid: tuple[int, int]) -> Array:
    if math.prod(grid) > length:
      raise ValueError(f"a grid of {grid} does not fit {length} tokens")
    y = square if grid == (side, side) else jax.image.resize(square, (*grid, d), "linear")
    y = y.reshape(-1, d)
    fill = jnp.broadcast_to(y[:1], (length - len(y), d))
    return jnp.concatenate([y, fill])

  unique = {(y, x): resized((y, x)) for y, x in grids}
  return jnp.stack([unique[y, x] for y, x in grids])
