"""DC-AE, the deep compression autoencoder whose latents Dif-DTok draws (arXiv 2410.10733).

Images are NHWC in [-1, 1]. Stages of residual or EfficientViT blocks, and between them resampling
by two beside a shortcut without parameters: pixels fold into channels, which are averaged in
groups, and back. There is nothing random in it. SANA sees `encode(x) * scaling`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from tarjax.models.layers import Array, Conv, Linear, RMSNorm, as_matrix, lecun
from tarjax.models.linear_attention import ChannelConv, GatedConv, linear_attend
from tarjax.sharding import shard

ACTIVATIONS = {"silu": nn.silu, "relu": nn.relu}


@dataclasses.dataclass(frozen=True)
class Stage:
  """`depth` blocks of one width; `scales` are sizes of the attention's further convolutions."""

  width: int
  depth: int
  attention: bool = False
  scales: tuple[int, ...] = ()
  act: str = "silu"  # of residual blocks

  def __post_init__(self):
    object.__setattr__(self, "scales", tuple(self.scales))
    if self.act not in ACTIVATIONS:
      raise ValueError(f"activation {self.act!r} is none of {list(ACTIVATIONS)}")


def f32(depths: tuple[int, ...]) -> tuple[Stage, ...]:
  """The six stages of the f32 family with these depths."""
  widths = (128, 256, 512, 512, 1024, 1024)
  wide = [i >= 3 for i in range(6)]
  return tuple(
    Stage(w, n, far, (5,) if far else ()) for w, n, far in zip(widths, depths, wide, strict=True)
  )


@dataclasses.dataclass(frozen=True)
class DcAeConfig:
  """Sizes of the autoencoder; the defaults are f32c32 as SANA uses it. Stages may be dicts.

  Attributes:
    latent: channels of the latent.
    encoder, decoder: stages, the one at full resolution first. A first stage without blocks is
      left out, and its resampling moves into the first, or last, convolution.
    head_dim: of the linear attention.
    fold_down: downsample by folding pixels into channels, and not by a strided convolution.
    fold_up: upsample by unfolding channels, and not by repeating pixels.
    encoder_shortcut, decoder_shortcut: around the convolutions at the latent.
    act: before the last convolution.
    scaling: what the diffusion's latents are multiplied by.
  """

  channels: int = 3
  latent: int = 32
  encoder: tuple[Stage, ...] = f32((2, 2, 2, 3, 3, 3))
  decoder: tuple[Stage, ...] = f32((3, 3, 3, 3, 3, 3))
  head_dim: int = 32
  fold_down: bool = False
  fold_up: bool = False
  encoder_shortcut: bool = True
  decoder_shortcut: bool = True
  act: str = "relu"
  scaling: float = 0.41407
  dtype: str = "float32"

  def __post_init__(self):
    for side in ("encoder", "decoder"):
      stages: Any = getattr(self, side)
      stages = tuple(Stage(**s) if isinstance(s, Mapping) else s for s in stages)
      object.__setattr__(self, side, stages)
    if len(self.encoder) != len(self.decoder):
      raise ValueError(f"{len(self.encoder)} encoder and {len(self.decoder)} decoder stages")
    if not self.scaling > 0:
      raise ValueError(f"scaling={self.scaling}: latents must be multiplied by more than 0")
    if self.act not in ACTIVATIONS:
      raise ValueError(f"activation {self.act!r} is none of {list(ACTIVATIONS)}")

  @property
  def factor(self) -> int:
    """Pixels per latent, along each side."""
    return 2 ** (len(self.encoder) - 1)


class ResBlock(nn.Module):
  """Convolution, activation, convolution, RMSNorm, and a shortcut: float[b y x c]."""

  config: DcAeConfig
  act: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width, dtype = x.shape[-1], jnp.dtype(self.config.dtype)
    y = ACTIVATIONS[self.act](Conv(width, dtype=dtype, name="conv1")(x))
    y = Conv(width, bias=False, dtype=dtype, name="conv2")(y)
    return x + RMSNorm(1e-5, bias=True, name="norm")(y)


class VitBlock(nn.Module):
  """Multi-scale linear attention, then a gated convolution, with shortcuts: float[b y x c].

  Queries, keys and values are joined before heads are cut from them: a head's own three are
  neighbours there, so q, k and v below are only thirds of one projection, as the originals are.
  """

  config: DcAeConfig
  scales: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, height, width, c = x.shape
    k, dtype = self.config.head_dim, jnp.dtype(self.config.dtype)
    h = c // k
    make: Any = {"dtype": dtype, "init": lecun}
    thirds = [
      Linear("byxc,cd->byxd", (c, h * k), ("embed", "mlp"), name=name, **make)(x) for name in "qkv"
    ]
    parts = [jnp.concatenate(thirds, -1)]  # [b y x 3hk]
    for i, size in enumerate(self.scales):
      y = ChannelConv(size, bias=False, dtype=dtype, name=f"scale{i}_depth")(parts[0])
      init: Any = {"dtype": dtype, "init": as_matrix(lecun, k), "name": f"scale{i}_point"}
      point = Linear("byxhk,hkj->byxhj", (3 * h, k, k), ("heads", "head_dim", None), **init)
      parts.append(point(y.reshape(b, height, width, 3 * h, k)).reshape(y.shape))
    heads = jnp.concatenate(parts, -1).reshape(b, height * width, -1, 3, k)  # [b l h' 3 k]
    y = linear_attend(heads[..., 0, :], heads[..., 1, :], heads[..., 2, :])
    y = y.reshape(b, height, width, -1)
    y = Linear("byxd,dc->byxc", (y.shape[-1], c), ("mlp", "embed"), name="out", **make)(y)
    x = shard(x + RMSNorm(1e-5, bias=True, name="norm")(y), "batch", "image", None, "channels")
    return x + GatedConv(4 * c, norm=True, dtype=dtype, name="mlp")(x)


class Down(nn.Module):
  """Half the resolution: float[b y x c] -> float[b y/2 x/2 features]."""

  config: DcAeConfig
  features: int
  shortcut: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dtype, pad = jnp.dtype(self.config.dtype), ((1, 1), (1, 1))
    if self.config.fold_down:
      y = fold(Conv(self.features // 4, dtype=dtype, name="conv")(x))
    else:
      y = Conv(self.features, stride=2, padding=pad, dtype=dtype, name="conv")(x)
    return y + group_mean(fold(x), self.features) if self.shortcut else y


class Up(nn.Module):
  """Twice the resolution: float[b y x c] -> float[b 2y 2x features]."""

  config: DcAeConfig
  features: int
  shortcut: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dtype = jnp.dtype(self.config.dtype)
    if self.config.fold_up:
      y = unfold(Conv(4 * self.features, dtype=dtype, name="conv")(x))
    else:
      y = Conv(self.features, dtype=dtype, name="conv")(x.repeat(2, 1).repeat(2, 2))
    if not self.shortcut:
      return y
    return y + unfold(jnp.repeat(x, 4 * self.features // x.shape[-1], -1))


def fold(x: Array) -> Array:
  """float[b 2y 2x c] -> float[b y x 4c]: the four pixels of a channel lie side by side."""
  b, y, w, c = x.shape
  x = x.reshape(b, y // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
  return x.reshape(b, y // 2, w // 2, 4 * c)


def unfold(x: Array) -> Array:
  """The inverse of `fold`."""
  b, y, w, c = x.shape
  x = x.reshape(b, y, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
  return x.reshape(b, 2 * y, 2 * w, c // 4)


def group_mean(x: Array, features: int) -> Array:
  """Means of runs of channels: float[b y x c] -> float[b y x features]."""
  return x.reshape(*x.shape[:3], features, -1).mean(-1)


def blocks(config: DcAeConfig, stage: Stage, i: int, x: Array) -> Array:
  """The blocks of stage i, in the module that calls."""
  for j in range(stage.depth):
    name = f"stage{i}_block{j}"
    if stage.attention:
      x = VitBlock(config, stage.scales, name=name)(x)
    else:
      x = ResBlock(config, stage.act, name=name)(x)
  return x


class Encoder(nn.Module):
  """float[b y x 3] -> float[b y/factor x/factor latent]."""

  config: DcAeConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    if c.encoder[0].depth:
      x = Conv(c.encoder[0].width, dtype=dtype, name="conv_in")(x)
    else:
      x = Down(c, c.encoder[1].width, shortcut=False, name="conv_in")(x)
    for i, stage in enumerate(c.encoder):
      x = blocks(c, stage, i, x)
      if i + 1 < len(c.encoder) and stage.depth:
        x = Down(c, c.encoder[i + 1].width, name=f"down{i}")(x)
    y = Conv(c.latent, dtype=dtype, name="conv_out")(x)
    return y + group_mean(x, c.latent) if c.encoder_shortcut else y


class Decoder(nn.Module):
  """float[b y x latent] -> float[b y*factor x*factor 3]; its stages run from the last."""

  config: DcAeConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    width = c.decoder[-1].width
    y = Conv(width, dtype=dtype, name="conv_in")(x)
    x = y + jnp.repeat(x, width // c.latent, -1) if c.decoder_shortcut else y
    for i, stage in reversed(list(enumerate(c.decoder))):
      if i + 1 < len(c.decoder) and stage.depth:
        x = Up(c, stage.width, name=f"up{i}")(x)
      x = blocks(c, stage, i, x)
    x = ACTIVATIONS[c.act](RMSNorm(1e-5, bias=True, name="norm_out")(x))
    if c.decoder[0].depth:
      return Conv(c.channels, dtype=dtype, name="conv_out")(x)
    return Up(c, c.channels, shortcut=False, name="conv_out")(x)


class DcAe(nn.Module):
  """Encoder and decoder. Call it to train; use the methods to read and draw."""

  config: DcAeConfig

  def setup(self):
    self.encoder = Encoder(self.config)
    self.decoder = Decoder(self.config)

  def encode(self, images: Array) -> Array:
    """float32[b y x 3] in [-1, 1] -> latents float32[b h w c], not scaled.

    Raises:
      ValueError: a side that `factor` does not divide.
    """
    factor = self.config.factor
    if images.shape[1] % factor or images.shape[2] % factor:
      raise ValueError(f"image {images.shape} has a side that {factor} does not divide")
    x = shard(images, "batch", "image", None, "channels")
    return self.encoder(x).astype(jnp.float32)

  def decode(self, latents: Array) -> Array:
    """float32[b h w c], not scaled -> float32[b y x 3], about [-1, 1] and not clipped."""
    return self.decoder(latents.astype(self.config.dtype)).astype(jnp.float32)

  def __call__(self, images: Array) -> Array:
    """float32[b y x 3] -> its reconstruction, float32[b y x 3]."""
    return self.decode(self.encode(images))
