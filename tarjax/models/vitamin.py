"""ViTamin: convolutions and then a transformer, and its mirror, which draws (arXiv 2404.02132).

UniTok (arXiv 2502.20321) reads with ViTamin-L at 256 px and draws with the same layers in the
reverse order. A stem and stages of MBConv blocks halve the sides, a last convolution halves them
once more, and blocks with GEGLU follow. There are no positions: convolutions tell places apart.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from tarjax.models.layers import Array, Conv, LayerNorm, Linear, xavier
from tarjax.models.siglip2 import square_side
from tarjax.models.transformer import Attention, stack
from tarjax.sharding import shard

EXPANSION = 4  # of channels inside an MBConv block
PAD: Any = ((1, 1), (1, 1))


@dataclasses.dataclass(frozen=True)
class VitaminConfig:
  """Sizes; the defaults are ViTamin-L's, as UniTok has it.

  Attributes:
    stem: channels of the first two convolutions.
    widths: channels of the stages of convolutions; each halves the sides.
    depths: MBConv blocks of each.
    drop_path: how often training leaves a branch of the last transformer block out; the first
      block's are never left out, and in between it rises linearly.
  """

  image: int = 256
  stem: int = 160
  widths: tuple[int, ...] = (160, 320)
  depths: tuple[int, ...] = (2, 4)
  width: int = 1024
  depth: int = 31
  heads: int = 16
  mlp: int = 2048
  drop_path: float = 0.1
  eps: float = 1e-6
  dtype: str = "float32"
  remat: str = "none"

  def __post_init__(self):
    object.__setattr__(self, "widths", tuple(self.widths))
    object.__setattr__(self, "depths", tuple(self.depths))
    if len(self.widths) != len(self.depths):
      raise ValueError(f"widths={self.widths} and depths={self.depths} are of unlike length")
    if self.image % self.factor or self.width % self.heads:
      raise ValueError(
        f"image={self.image} must be a multiple of {self.factor} pixels, the side of a place, and "
        f"width={self.width} of heads={self.heads}"
      )

  @property
  def factor(self) -> int:
    """Pixels per place, along each side."""
    return 2 ** (len(self.widths) + 2)

  @property
  def grid(self) -> int:
    """Places per side."""
    return self.image // self.factor


class GeGlu(nn.Module):
  """A layer norm and a gated MLP, tanh GELU, with biases: float[b l d] -> float[b l d]."""

  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    d, f = x.shape[-1], self.width
    make: Any = {"bias": True, "dtype": self.dtype, "init": xavier}
    up, down = ((d, f), ("embed", "mlp")), ((f, d), ("mlp", "embed"))
    x = LayerNorm(name="norm")(x)
    gate = checkpoint_name(Linear("bld,df->blf", *up, name="gate", **make)(x), "gate")
    h = checkpoint_name(Linear("bld,df->blf", *up, name="up", **make)(x), "up")
    h = shard(nn.gelu(gate, approximate=True) * h, "batch", "length", "act_mlp")  # [b l f]
    return Linear("blf,fd->bld", *down, name="down", **make)(h)


class Block(nn.Module):
  """Pre-norm attention and GEGLU; training leaves branches out, at a rate float32[]."""

  config: VitaminConfig
  train: bool

  @nn.compact
  def __call__(self, x: Array, rate: Array) -> tuple[Array, None]:
    c, dtype, d = self.config, jnp.dtype(self.config.dtype), x.shape[-1]
    make: Any = {"dtype": dtype, "init": xavier, "name": "attn"}
    y, _ = Attention(c.heads, c.heads, d // c.heads, **make)(LayerNorm(c.eps, name="norm1")(x))
    x = checkpoint_name(x + self.some(y, rate), "resid")  # [b l d]
    y = GeGlu(c.mlp, dtype, name="mlp")(LayerNorm(c.eps, name="norm2")(x))
    return shard(x + self.some(y, rate), "batch", "length", "act_embed"), None

  def some(self, y: Array, rate: Array) -> Array:
    """A branch float[b l d], or nothing of it, for a whole picture."""
    if not (self.train and self.config.drop_path):
      return y
    kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (len(y), 1, 1))
    return jnp.where(kept, y / (1 - rate), 0).astype(y.dtype)


def transformer(c: VitaminConfig, x: Array, train: bool) -> Array:
  """The blocks and the norm after them, in the module that calls: float[b l d]."""
  rates = jnp.linspace(0, c.drop_path, c.depth)
  x, _ = stack(Block, c.depth, c.remat, in_axes=0)(c, train, name="blocks")(x, rates)
  return LayerNorm(c.eps, name="norm")(x)


def conv(c: VitaminConfig, features: int, name: str, **options) -> Conv:
  """A 3 x 3 convolution with bias, float[b y x c] -> float[b y/stride x/stride features]."""
  return Conv(features, padding=PAD, dtype=jnp.dtype(c.dtype), name=name, **options)


def pointwise(c: VitaminConfig, x: Array, features: int, name: str) -> Array:
  """A 1 x 1 convolution with bias, in the module that calls."""
  shape, axes = (x.shape[-1], features), ("conv_in", "conv_out")
  make: Any = {"bias": True, "dtype": jnp.dtype(c.dtype), "init": xavier, "name": name}
  return Linear("byxc,cd->byxd", shape, axes, **make)(x)


def upsample(c: VitaminConfig, x: Array, features: int, name: str) -> Array:
  """Twice the sides, nearest, and a 3 x 3 convolution, in the module that calls."""
  return conv(c, features, name)(x.repeat(2, 1).repeat(2, 2))


def exact_gelu(x: Array) -> Array:
  return nn.gelu(x, approximate=False)


class MbConv(nn.Module):
  """Norm, wider, convolution of each channel, narrower, and a shortcut.

  float[b y x c] -> float[b y' x' features]; `sides` is "same", "halved" or "doubled".
  """

  config: VitaminConfig
  features: int
  sides: str = "same"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c, wide = self.config, EXPANSION * self.features
    y = LayerNorm(c.eps, name="norm")(x)
    y = exact_gelu(pointwise(c, y, wide, "expand"))
    if self.sides == "doubled":
      y, x = upsample(c, y, wide, "up"), upsample(c, x, self.features, "shortcut")
    if self.sides == "halved":  # padding counts for nothing
      x = nn.avg_pool(x, (3, 3), (2, 2), PAD, count_include_pad=False)
    if x.shape[-1] != self.features:
      x = pointwise(c, x, self.features, "shortcut")
    stride = 2 if self.sides == "halved" else 1
    y = exact_gelu(conv(c, wide, "depthwise", stride=stride, groups=wide)(y))
    return pointwise(c, y, self.features, "project") + x


def mb_convs(c: VitaminConfig, x: Array, stage: int, sides: str) -> Array:
  """A stage, whose first block changes the sides, in the module that calls."""
  make: Any = MbConv if c.remat == "none" else nn.remat(MbConv)
  for i in range(c.depths[stage]):
    name = f"stage{stage}_block{i}"
    x = make(c, c.widths[stage], "same" if i else sides, name=name)(x)
  return x


class Vitamin(nn.Module):
  """Pictures float[b y x 3] in [-1, 1] -> float[b n d], rows of places after one another.

  Raises:
    ValueError: pictures of another size than the config's.
  """

  config: VitaminConfig

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    c = self.config
    if images.shape[1:] != (c.image, c.image, 3):
      raise ValueError(f"images are {images.shape[1:]}, ViTamin takes {c.image} x {c.image} px")
    x = shard(images, "batch", "image", None, "channels")
    x = conv(c, c.stem, "stem1", stride=2)(x)
    x = conv(c, c.stem, "stem2")(exact_gelu(LayerNorm(c.eps, name="stem_norm")(x)))
    for stage in range(len(c.widths)):
      x = mb_convs(c, x, stage, "halved")
    x = conv(c, c.width, "pool", stride=2)(LayerNorm(c.eps, name="pool_norm")(x))
    return transformer(c, x.reshape(len(x), -1, c.width), train)  # [b n d]


class VitaminDecoder(nn.Module):
  """Tokens float[b n d], n a square -> float32[b y x 3], about [-1, 1] and not clipped."""

  config: VitaminConfig

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    c, side = self.config, square_side(x.shape[1])
    x = transformer(c, x.astype(c.dtype), train)
    x = x.reshape(len(x), side, side, c.width)  # [b y x c]
    x = upsample(c, x, (c.stem, *c.widths)[-1], "pool")
    for stage in reversed(range(len(c.widths))):
      x = mb_convs(c, x, stage, "doubled")
    x = upsample(c, x, x.shape[-1], "stem")
    x = exact_gelu(LayerNorm(c.eps, name="stem_norm")(x))
    return conv(c, 3, "out")(x).astype(jnp.float32)
