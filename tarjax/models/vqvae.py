"""The VQ image tokenizer of LlamaGen, VQ-16: AR-DTok predicts its codes, its decoder draws them.

Images are NHWC in [-1, 1]. A convolutional encoder halves them at every level but the last, each
position becomes the nearest of `codes` unit vectors, and a mirrored decoder draws the picture
(arXiv 2406.06525 Sec. 2.1; Tar paper Sec. 3.2).
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tarjax.models.attention import attend
from tarjax.models.layers import Conv, GroupNorm, Linear
from tarjax.models.siglip2 import unit
from tarjax.models.vq import nearest_code
from tarjax.sharding import named, shard

Array = jax.Array
ENTROPY_TEMPERATURE = 0.01
INIT = nn.initializers.lecun_uniform()


@dataclasses.dataclass(frozen=True)
class VqVaeConfig:
  """Sizes of the tokenizer; the defaults are the released VQ-16, and one multiplier less is VQ-8.

  `blocks` counts residual blocks per level of the encoder; the decoder has one more.
  """

  channels: int = 128
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  blocks: int = 2
  latent: int = 256
  codes: int = 16384
  code_width: int = 8
  l2_normalized: bool = True
  groups: int = 32
  commit: float = 0.25
  entropy_ratio: float = 0.0
  dtype: str = "float32"

  def __post_init__(self):
    object.__setattr__(self, "multipliers", tuple(self.multipliers))

  @property
  def factor(self) -> int:
    """Pixels per code, along each side."""
    return 2 ** (len(self.multipliers) - 1)


class ResBlock(nn.Module):
  """Twice norm, swish, convolution, and a shortcut: float[b y x c] -> float[b y x features]."""

  config: VqVaeConfig
  features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    y = nn.silu(GroupNorm(c.groups, name="norm1")(x))
    y = conv(c, self.features, "conv1")(y)
    y = nn.silu(GroupNorm(c.groups, name="norm2")(y))
    y = conv(c, self.features, "conv2")(y)
    if x.shape[-1] != self.features:
      x = pointwise(c, x.shape[-1], self.features, "shortcut")(x)
    return x + y


class AttnBlock(nn.Module):
  """Self-attention of one head over all positions: float[b y x c] -> float[b y x c]."""

  config: VqVaeConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, height, width, c = x.shape
    y = GroupNorm(self.config.groups, name="norm")(x)
    q, k, v = (
      pointwise(self.config, c, c, name)(y).reshape(b, height * width, 1, c) for name in "qkv"
    )  # [b l 1 c]
    y = attend(q, k, v).reshape(x.shape)
    return x + pointwise(self.config, c, c, "out")(y)


def conv(config: VqVaeConfig, features: int, name: str, **options) -> Conv:
  """A 3 x 3 convolution with bias, float[b y x c] -> float[b y' x' features]."""
  return Conv(features, dtype=jnp.dtype(config.dtype), init=INIT, name=name, **options)


def pointwise(config: VqVaeConfig, width: int, features: int, name: str | None = None):
  """A 1 x 1 convolution with bias, float[b y x c] -> float[b y x d]."""
  axes = ("conv_in", "conv_out")
  make: Any = {"bias": True, "dtype": jnp.dtype(config.dtype), "init": INIT, "name": name}
  return Linear("byxc,cd->byxd", (width, features), axes, **make)


class Middle(nn.Module):
  """Residual block, attention, residual block, at the coarsest resolution."""

  config: VqVaeConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = ResBlock(self.config, x.shape[-1], name="res0")(x)
    x = AttnBlock(self.config, name="attn")(x)
    return ResBlock(self.config, x.shape[-1], name="res1")(x)


class Encoder(nn.Module):
  """float[b y x 3] -> float[b y/factor x/factor latent]; attention at the last level."""

  config: VqVaeConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    last = len(c.multipliers) - 1
    x = conv(c, c.channels, "conv_in")(x)
    for i, multiplier in enumerate(c.multipliers):
      for j in range(c.blocks):
        x = ResBlock(c, c.channels * multiplier, name=f"level{i}_res{j}")(x)
        if i == last:
          x = AttnBlock(c, name=f"level{i}_attn{j}")(x)
      if i < last:  # one zero row below and one zero column to the right
        pad = ((0, 1), (0, 1))
        x = conv(c, x.shape[-1], f"down{i}", stride=2, padding=pad)(x)  # [b y/2 x/2 c]
    x = Middle(c, name="mid")(x)
    x = nn.silu(GroupNorm(c.groups, name="norm_out")(x))
    return conv(c, c.latent, "conv_out")(x)


class Decoder(nn.Module):
  """float[b y x latent] -> float[b y*factor x*factor 3]; level 0, with attention, is coarsest."""

  config: VqVaeConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    last = len(c.multipliers) - 1
    x = conv(c, c.channels * c.multipliers[-1], "conv_in")(x)
    x = Middle(c, name="mid")(x)
    for i, multiplier in enumerate(reversed(c.multipliers)):
      for j in range(c.blocks + 1):
        x = ResBlock(c, c.channels * multiplier, name=f"level{i}_res{j}")(x)
        if i == 0:
          x = AttnBlock(c, name=f"level{i}_attn{j}")(x)
      if i < last:
        x = x.repeat(2, 1).repeat(2, 2)  # [b 2y 2x c], nearest
        x = conv(c, x.shape[-1], f"up{i}")(x)
    x = nn.silu(GroupNorm(c.groups, name="norm_out")(x))
    return conv(c, 3, "conv_out")(x)


class VqVae(nn.Module):
  """Encoder, codebook and decoder. Call it to train; use the methods to read and draw."""

  config: VqVaeConfig

  def setup(self):
    c = self.config
    self.encoder = Encoder(c)
    self.decoder = Decoder(c)
    self.quant_conv = pointwise(c, c.latent, c.code_width)
    self.post_quant_conv = pointwise(c, c.code_width, c.latent)
    init = named(codebook_init(c.l2_normalized), "codebook", "channels")
    self.codebook = self.param("codebook", init, (c.codes, c.code_width), jnp.float32)

  def embeddings(self) -> Array:
    """The vectors that codes stand for, float32[e d]: unit length if `l2_normalized`."""
    table = jnp.asarray(self.codebook)
    return unit(table) if self.config.l2_normalized else table

  def encode(self, images: Array) -> Array:
    """float32[b y x 3] in [-1, 1] -> float32[b h w d] before quantization, not of unit length.

    Raises:
      ValueError: a side that `factor` does not divide.
    """
    if images.shape[1] % self.config.factor or images.shape[2] % self.config.factor:
      raise ValueError(f"image {images.shape} has a side that {self.config.factor} does not divide")
    x = shard(images, "batch", "image", None, "channels")
    return self.quant_conv(self.encoder(x)).astype(jnp.float32)

  def quantize(self, z: Array) -> dict[str, Array]:
    """Nearest codes and the losses of their choice.

    Args:
      z: float32[b h w d] from `encode`.

    Returns:
      indices: int32[b h*w], row-major.
      quant: float32[b h w d], the chosen vectors; gradients pass straight through to z.
      codebook_loss, commit_loss, entropy_loss: float32[], the last two times their weights.
    """
    c = self.config
    z = unit(z) if c.l2_normalized else z
    table = self.embeddings()
    flat = z.reshape(-1, c.code_width)
    indices, _ = nearest_code(flat, table)
    chosen = table[indices].reshape(z.shape)
    entropy = jnp.float32(0)
    if c.entropy_ratio:
      entropy = c.entropy_ratio * entropy_loss(flat, table)
    return {
      "indices": indices.reshape(z.shape[0], -1),
      "quant": z + jax.lax.stop_gradient(chosen - z),
      "codebook_loss": jnp.square(chosen - jax.lax.stop_gradient(z)).mean(),
      "commit_loss": c.commit * jnp.square(jax.lax.stop_gradient(chosen) - z).mean(),
      "entropy_loss": entropy,
    }

  def decode(self, quant: Array) -> Array:
    """float32[b h w d] -> float32[b y x 3], about [-1, 1] and not clipped."""
    return self.decoder(self.post_quant_conv(quant)).astype(jnp.float32)

  def decode_indices(self, indices: Array, grid: tuple[int, int] | None = None) -> Array:
    """int[b h*w] -> float32[b y x 3]; `grid` is (h, w), and by default square.

    Raises:
      ValueError: as many codes as do not fill the grid.
    """
    b, n = indices.shape
    h, w = grid or (math.isqrt(n), math.isqrt(n))
    if h * w != n:
      raise ValueError(f"{n} codes do not fill a grid of {h} x {w}")
    return self.decode(self.embeddings()[indices].reshape(b, h, w, -1))

  def __call__(self, images: Array) -> dict[str, Array]:
    """float32[b y x 3] -> the dict of `quantize` and "rec" float32[b y x 3]."""
    q = self.quantize(self.encode(images))
    return q | {"rec": self.decode(q["quant"])}


def entropy_loss(z: Array, table: Array) -> Array:
  """Mean entropy of each vector's choice of codes minus entropy of the mean choice, float32[].

  Args:
    z: float32[n d].
    table: float32[e d].
  """
  dots = jnp.einsum("nd,ed->ne", z, table, precision=jax.lax.Precision.HIGHEST)
  distance = jnp.square(z).sum(-1, keepdims=True) + jnp.square(table).sum(-1) - 2 * dots
  logs = jax.nn.log_softmax(-distance / ENTROPY_TEMPERATURE)  # [n e]
  chances = jnp.exp(logs)
  mean = chances.mean(0)
  return (mean * jnp.log(mean + 1e-5)).sum() - (chances * logs).sum(-1).mean()


def codebook_init(l2_normalized: bool):
  """Uniform in +-1/e, then made unit length when codes are compared by angle."""

  def init(key, shape, dtype=jnp.float32):
    table = jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])
    return unit(table) if l2_normalized else table

  return init


def to_uint8(x, rounding: str = "truncate") -> np.ndarray:
  """A picture in [-1, 1] -> uint8 of the same shape.

  "truncate" is what Tar does (x/2 + 1/2, clipped, times 255); "round" is what LlamaGen does when it
  scores reconstructions (127.5 x + 128, clipped).

  Raises:
    ValueError: another rounding.
  """
  x = np.asarray(x, np.float32)
  if rounding == "truncate":
    return (np.clip(x * 0.5 + 0.5, 0, 1) * 255).astype(np.uint8)
  if rounding == "round":
    return np.clip(127.5 * x + 128, 0, 255).astype(np.uint8)
  raise ValueError(f"rounding is {rounding!r}; it must be 'truncate' or 'round'")
