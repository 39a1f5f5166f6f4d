"""Dif-DTok: SANA, a diffusion transformer that draws DC-AE latents from TA-Tok's features.

It predicts the velocity of a flow from latents to noise (paper Sec. 3.2, arXiv 2410.10629). A block
is linear self-attention and a gated convolution, both modulated by the time, around a softmax
cross-attention that is neither normalised nor gated. Convolutions carry the positions.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from tarjax.models.layers import (
  Array,
  LayerNorm,
  Linear,
  RMSNorm,
  normal,
  standardize,
  xavier,
  zeros,
)
from tarjax.models.linear_attention import GatedConv, LinearAttention
from tarjax.models.transformer import Attention, stack
from tarjax.sharding import named, shard

WAVES = 256  # width of the sinusoidal time embedding
UNSEEN = -1e4  # what a masked condition token's logits get; the original is not -infinity


@dataclasses.dataclass(frozen=True)
class DifDtokConfig:
  """Sizes of a SANA transformer; the defaults are Tar's 0.6B.

  Attributes:
    channels: of the latent.
    out: channels that are predicted; 0 means as many as `channels`.
    heads: of the linear self-attention; they split `width`.
    cross_heads: of the cross-attention, each `cross_head_dim` wide.
    mlp_ratio: half of the gated convolution's inner width, over `width`.
    cond_width: channels of the condition, TA-Tok's features.
    qkv_bias: biases in the self-attention's q, k, v.
    qk_norm: RMSNorm over all heads on queries and keys of both attentions (SANA-1.5).
    norm_affine: scale and bias in the gated convolution's LayerNorm.
    guidance: the guidance scale is an input too; its factor, and 0 for none (SANA-Sprint).
    positions: sinusoidal positions with this interpolation scale; 0 for none.
    size: side of the latents it was trained on.
    time_scale: factor of the times that a sampler feeds.
  """

  channels: int = 32
  out: int = 0
  width: int = 1152
  depth: int = 28
  heads: int = 36
  cross_heads: int = 16
  cross_head_dim: int = 72
  mlp_ratio: float = 2.5
  cond_width: int = 1152
  patch: int = 1
  qkv_bias: bool = False
  qk_norm: bool = False
  norm_affine: bool = False
  eps: float = 1e-6
  guidance: float = 0.0
  positions: float = 0.0
  size: int = 16
  time_scale: float = 1.0
  dtype: str = "float32"
  remat: str = "none"

  def __post_init__(self):
    if self.width % self.heads:
      raise ValueError(f"width={self.width} does not divide into heads={self.heads}")
    if self.positions and self.width % 4:
      raise ValueError(f"positions need a width that 4 divides, not {self.width}")
    if not (self.size > 0 and self.time_scale > 0):
      raise ValueError(f"size={self.size} and time_scale={self.time_scale} must be above 0")
    object.__setattr__(self, "out", self.out or self.channels)


class TimeEmbedding(nn.Module):
  """Sinusoids, linear, SiLU, linear: float32[b] -> float[b d]."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, time: Array) -> Array:
    half, d = WAVES // 2, self.width
    frequency = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = time.astype(jnp.float32)[:, None] * frequency  # [b c/2]
    x = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], 1)  # [b c]
    make: Any = {"bias": True, "dtype": self.dtype}
    x = nn.silu(Linear("bc,cd->bd", (WAVES, d), ("channels", "embed"), name="fc1", **make)(x))
    return Linear("bd,dk->bk", (d, d), ("embed", "act_embed"), name="fc2", **make)(x)


class Condition(nn.Module):
  """Linear, GELU (tanh), linear, RMSNorm: float[b s c] -> float[b s d]."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, cond: Array) -> Array:
    c, d = cond.shape[-1], self.width
    make: Any = {"bias": True, "dtype": self.dtype}
    x = Linear("blc,cd->bld", (c, d), ("channels", "embed"), name="fc1", **make)(cond)
    x = nn.gelu(x, approximate=True)
    x = Linear("bld,dk->blk", (d, d), ("embed", "act_embed"), name="fc2", **make)(x)
    return RMSNorm(1e-5, name="norm")(x)


class Block(nn.Module):
  """One SANA block on a grid of tokens; `collect` also returns what it computes."""

  config: DifDtokConfig
  grid: tuple[int, int]
  collect: bool = False

  @nn.compact
  def __call__(self, x, cond, mask, time):
    """float[b l d], float[b s d], float32[b 1 s], float[b 6 d] -> (float[b l d], the same | None).

    `time` is added to the block's table: shift, scale and gate of the attention, then of the
    convolution.
    """
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    init = named(normal(c.width**-0.5), None, "act_embed")
    table = self.param("table", init, (6, c.width), jnp.float32)
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(table + time, 6, 1)  # [b 1 d]
    y = (standardize(x, c.eps) * (1 + scale1) + shift1).astype(x.dtype)
    make: Any = {"qkv_bias": c.qkv_bias, "qk_norm": c.qk_norm, "dtype": dtype, "name": "attn"}
    y = LinearAttention(c.heads, c.width // c.heads, **make)(y)
    x = shard((x + gate1 * y).astype(x.dtype), "batch", "length", "act_embed")
    x = checkpoint_name(x, "resid")

    make = {"init": xavier, "qk_norm": c.qk_norm, "dtype": dtype, "name": "cross"}
    cross = Attention(c.cross_heads, c.cross_heads, c.cross_head_dim, **make)
    y, _ = cross(x, context=cond, mask=mask)
    x = shard(x + y, "batch", "length", "act_embed")

    y = LayerNorm(c.eps, name="norm2")(x) if c.norm_affine else standardize(x, c.eps)
    y = (y * (1 + scale2) + shift2).astype(x.dtype)
    y = y.reshape(x.shape[0], *self.grid, c.width)  # [b y x d]
    y = GatedConv(int(c.mlp_ratio * c.width), dtype=dtype, name="mlp")(y).reshape(x.shape)
    x = shard((x + gate2 * y).astype(x.dtype), "batch", "length", "act_embed")
    return x, x if self.collect else None


class DifDtok(nn.Module):
  """The velocity of a noisy latent. `collect` makes it return what happens inside as well."""

  config: DifDtokConfig
  collect: bool = False

  @nn.compact
  def __call__(
    self,
    latents: Array,
    time: Array,
    cond: Array,
    mask: Array | None = None,
    guidance: Array | None = None,
  ) -> Any:
    """Predicts noise minus latent (arXiv 2410.10629 Sec. 2.3).

    Args:
      latents: float32[b y x c], scaled as the diffusion sees them.
      time: float32[b] in [0, 1000).
      cond: float[b s w], TA-Tok's reconstructed features.
      mask: [b s], 1 or True where a condition token is seen; None sees all.
      guidance: float32[b], already times `config.guidance`; needed if that is not 0.

    Returns:
      float32[b y x out]. With `collect`, also a dict: "modulation" float[b 6 d], "time" float[b d],
      "cond" float[b s d], "blocks" float[n b l d].

    Raises:
      ValueError: a side that the patch does not divide, or guidance where it does not belong.
    """
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    make: Any = {"bias": True, "dtype": dtype}
    if latents.shape[1] % c.patch or latents.shape[2] % c.patch:
      raise ValueError(f"latents {latents.shape} do not divide into patches of {c.patch}")
    if (guidance is None) == bool(c.guidance):
      raise ValueError(f"config.guidance={c.guidance}, but guidance is {guidance}")
    grid = (latents.shape[1] // c.patch, latents.shape[2] // c.patch)
    x = to_patches(latents, c.patch)  # [b l p*p*c]
    axes, shape = ("channels", "embed"), (x.shape[-1], c.width)
    x = Linear("blc,cd->bld", shape, axes, init=xavier, name="patch", **make)(x)
    if c.positions:
      x += sine_grid(grid, c.size // c.patch, c.positions, c.width).astype(dtype)
    x = shard(x, "batch", "length", "act_embed")  # [b l d]

    embedding = TimeEmbedding(c.width, dtype, name="time")(time)  # [b d]
    if guidance is not None:
      embedding += TimeEmbedding(c.width, dtype, name="guidance")(guidance)
    axes, shape = ("embed", None, "act_embed"), (c.width, 6, c.width)
    modulation = Linear("bd,dmk->bmk", shape, axes, name="modulation", **make)(nn.silu(embedding))
    cond = Condition(c.width, dtype, name="cond")(cond)  # [b s d]
    bias = None if mask is None else UNSEEN * (1 - mask.astype(jnp.float32))[:, None]  # [b 1 s]

    blocks = stack(Block, c.depth, c.remat, in_axes=nn.broadcast)
    x, states = blocks(c, grid, self.collect, name="blocks")(x, cond, bias, modulation)

    init = named(normal(c.width**-0.5), None, "act_embed")
    table = self.param("table", init, (2, c.width), jnp.float32)
    shift, scale = jnp.split(table + embedding[:, None], 2, 1)  # [b 1 d]
    x = standardize(x, 1e-6) * (1 + scale) + shift
    axes, shape = ("embed", "channels"), (c.width, c.patch**2 * c.out)
    x = Linear("bld,dc->blc", shape, axes, init=zeros, name="out", **make)(x)
    y = from_patches(x.astype(jnp.float32), grid, c.patch)  # [b y x c]
    inside = {"modulation": modulation, "time": embedding, "cond": cond, "blocks": states}
    return (y, inside) if self.collect else y


def to_patches(x: Array, patch: int) -> Array:
  """float[b y x c] -> float[b l p*p*c], row-major tokens; within one, rows, columns, channels."""
  b, y, w, c = x.shape
  x = x.reshape(b, y // patch, patch, w // patch, patch, c).swapaxes(2, 3)
  return x.reshape(b, -1, patch * patch * c)


def from_patches(x: Array, grid: tuple[int, int], patch: int) -> Array:
  """The inverse of `to_patches` on a grid of y/p by x/p tokens."""
  rows, columns = grid
  x = x.reshape(x.shape[0], rows, columns, patch, patch, -1).swapaxes(2, 3)
  return x.reshape(x.shape[0], rows * patch, columns * patch, -1)


def sine_grid(grid: tuple[int, int], base: int, interpolation: float, width: int) -> Array:
  """Positions float32[l d]: the column in the first half of the channels, the row in the second.

  Each half is sines, then cosines; a grid of any size spans 0..base / interpolation.
  """
  rows, columns = (np.arange(n, dtype=np.float32) / (n / base) / interpolation for n in grid)
  frequency = 10_000 ** -(np.arange(width // 4) / (width / 4))

  def waves(at):  # [l] -> [l d/2]
    angle = np.outer(at, frequency)
    return np.concatenate([np.sin(angle), np.cos(angle)], 1)

  table = [waves(np.tile(columns, grid[0])), waves(np.repeat(rows, grid[1]))]
  return jnp.asarray(np.concatenate(table, 1), jnp.float32)
