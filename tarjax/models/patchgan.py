"""The PatchGAN discriminator: which patches of a picture look real (arXiv 1611.07004, 2012.09841).

Convolutions of four pixels halve the sides `layers` times, and two more leave one logit for every
overlapping patch, of 70 pixels a side with three layers.

Its batch norms take the moments of the whole global batch, however many devices it is split over,
so that a run does not depend on the mesh; the reference takes those of the pictures on one GPU, 16
of its 128. They are never anything but the batch's own: the discriminator is used in training only.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from tarjax.models.layers import Conv, normal, zeros
from tarjax.sharding import named

Array = jax.Array
SLOPE, WIDEST = 0.2, 8  # of leaky ReLUs; times `channels`
PAD = ((1, 1), (1, 1))


@dataclasses.dataclass(frozen=True)
class PatchGanConfig:
  """`channels` of the first convolution, and how often the sides are halved."""

  channels: int = 64
  layers: int = 3
  dtype: str = "float32"


class BatchNorm(nn.Module):
  """float[b y x c] -> float[b y x c], float32 inside: moments over all but the channels."""

  eps: float = 1e-5

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (x.shape[-1],)
    scale = self.param("scale", named(about_one, "channels"), shape, jnp.float32)
    bias = self.param("bias", named(zeros, "channels"), shape, jnp.float32)
    y = x.astype(jnp.float32)
    y = y - y.mean((0, 1, 2))
    gain = jax.lax.rsqrt(jnp.square(y).mean((0, 1, 2)) + self.eps) * scale
    return (y * gain + bias).astype(x.dtype)


class PatchGan(nn.Module):
  """float[b y x 3] in [-1, 1] -> logits float32[b y' x'], above 0 where it takes a patch for real.

  y' is y / 2^layers - 2.

  Raises:
    ValueError: pictures smaller than one patch.
  """

  config: PatchGanConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c, init = self.config, normal()
    if min(x.shape[1:3]) // 2**c.layers < 3:
      raise ValueError(
        f"pictures of {x.shape[1]} x {x.shape[2]} pixels are too small for a discriminator that "
        f"halves them {c.layers} times: it needs {3 * 2**c.layers} a side"
      )
    for i in range(c.layers + 1):
      width, stride = c.channels * min(2**i, WIDEST), 2 if i < c.layers else 1
      make = {"bias": i == 0, "dtype": jnp.dtype(c.dtype), "init": init}
      x = Conv(width, 4, stride, PAD, **make, name=f"conv{i}")(x)
      x = BatchNorm(name=f"norm{i}")(x) if i else x
      x = nn.leaky_relu(x, SLOPE)
    x = Conv(1, 4, 1, PAD, dtype=jnp.dtype(c.dtype), init=init, name="conv_out")(x)
    return x[..., 0].astype(jnp.float32)


def about_one(key, shape, dtype=jnp.float32) -> Array:
  """The first scales of batch norms: N(1, 0.02)."""
  return 1 + 0.02 * jax.random.normal(key, shape, dtype)
