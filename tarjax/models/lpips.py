"""LPIPS: how unlike two pictures look, version 0.1 on VGG16 (arXiv 1801.03924 Sec. 3).

Features of both pictures after five stages of VGG16 (arXiv 1409.1556) are made unit vectors at
every place; their squared differences are weighed by channel, averaged over places and summed over
stages. The published weights are imported, see `convert.kinds.lpips`; nothing here is trained.
(LlamaGen's loop leaves a dropout on before the weights; its mean is what is computed here.)
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from tarjax.models.layers import Conv, ones
from tarjax.sharding import named, shard

Array = jax.Array
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's, on [-1, 1]
DEPTHS = (2, 2, 3, 3, 3)  # convolutions of VGG16's stages
LEAST = 1e-10  # length of a vector that is divided by


@dataclasses.dataclass(frozen=True)
class LpipsConfig:
  """`widths` are the channels of VGG16's five stages."""

  widths: tuple[int, ...] = (64, 128, 256, 512, 512)
  dtype: str = "float32"

  def __post_init__(self):
    object.__setattr__(self, "widths", tuple(self.widths))
    if len(self.widths) != len(DEPTHS):
      raise ValueError(f"VGG16 has {len(DEPTHS)} stages, but there are {len(self.widths)} widths")


class Vgg16(nn.Module):
  """float[b y x 3], normalized -> the last maps of five stages, [b y x c], [b y/2 x/2 c], ..."""

  config: LpipsConfig

  @nn.compact
  def __call__(self, x: Array) -> list[Array]:
    maps = []
    for stage, (width, depth) in enumerate(zip(self.config.widths, DEPTHS, strict=True)):
      x = nn.max_pool(x, (2, 2), (2, 2)) if stage else x
      for i in range(depth):
        make = {"dtype": jnp.dtype(self.config.dtype), "name": f"stage{stage}_conv{i}"}
        x = nn.relu(Conv(width, **make)(x))
      maps.append(x)
    return maps


class Lpips(nn.Module):
  """Two float[b y x 3] in [-1, 1] -> float32[b], 0 for the same picture.

  Raises:
    ValueError: pictures of less than 16 pixels a side.
  """

  config: LpipsConfig

  @nn.compact
  def __call__(self, a: Array, b: Array) -> Array:
    if min(a.shape[1:3]) < 2 ** (len(DEPTHS) - 1):
      raise ValueError(f"LPIPS needs pictures of 16 pixels a side or more, not {a.shape[1:3]}")
    vgg, total = Vgg16(self.config, name="vgg"), jnp.float32(0)
    pairs = zip(vgg(normalized(a)), vgg(normalized(b)), strict=True)
    for stage, maps in enumerate(pairs):
      x, y = (directions(m) for m in maps)
      shape = (x.shape[-1],)
      weight = self.param(f"weight{stage}", named(ones, "channels"), shape, jnp.float32)
      total += (jnp.square(x - y) * weight).sum(-1).mean((1, 2))
    return total


def normalized(x: Array) -> Array:
  """What VGG16 was trained on, of float[b y x 3] in [-1, 1]."""
  x = shard(x, "batch", "image", None, "channels")
  return (x.astype(jnp.float32) - jnp.array(SHIFT)) / jnp.array(SCALE)


def directions(x: Array) -> Array:
  """float[... c] -> float32[... c] of unit length; a zero vector stays one, without a gradient."""
  x = x.astype(jnp.float32)
  length = jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), LEAST**2))
  return x / (length + LEAST)
