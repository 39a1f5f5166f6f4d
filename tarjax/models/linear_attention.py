"""What SANA and DC-AE share: ReLU attention in linear time, and convolutions by channel.

arXiv 2410.10629 Sec. 2.2 (linear DiT), arXiv 2205.14756 (EfficientViT).
"""

import functools
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tarjax.models.layers import (
  Array,
  Linear,
  RMSNorm,
  as_matrix,
  lecun,
  xavier,
  zeros,
)
from tarjax.models.transformer import norm_heads
from tarjax.sharding import named, platform, shard

EPS = 1e-15


def linear_attend(q: Array, k: Array, v: Array) -> Array:
  """Attention whose weights are relu(q) . relu(k), without a scale; sums are float32.

  Args:
    q: float[b l h k].
    k: float[b s h k].
    v: float[b s h j].

  Returns:
    float[b l h j] of v's dtype; where all weights are 0, it is 0.
  """
  dtype, exact = v.dtype, jax.lax.Precision.HIGHEST
  q, k, v = (a.astype(jnp.float32) for a in (nn.relu(q), nn.relu(k), v))
  values = jnp.einsum("bshk,bshj->bhkj", k, v, precision=exact)
  y = jnp.einsum("blhk,bhkj->blhj", q, values, precision=exact)
  weight = jnp.einsum("blhk,bhk->blh", q, k.sum(1), precision=exact)
  return (y / (weight[..., None] + EPS)).astype(dtype)


class LinearAttention(nn.Module):
  """Self-attention of linear cost, with an output bias: float[b l d] -> float[b l d]."""

  heads: int
  head_dim: int
  qkv_bias: bool = False
  qk_norm: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    d, h, k = x.shape[-1], self.heads, self.head_dim
    make: Any = {"bias": self.qkv_bias, "dtype": self.dtype, "init": as_matrix(xavier, d)}
    q, key, v = (
      Linear("bld,dhk->blhk", (d, h, k), ("embed", "heads", "head_dim"), name=name, **make)(x)
      for name in "qkv"
    )
    if self.qk_norm:
      q, key = norm_heads(q, "norm_q"), norm_heads(key, "norm_k")
    q, key, v = (shard(y, "batch", "length", "act_heads", None) for y in (q, key, v))
    y = linear_attend(q, key, v)  # [b l h k]
    axes, init = ("heads", "head_dim", "embed"), as_matrix(xavier, h * k)
    make = {"bias": True, "dtype": self.dtype, "init": init, "name": "out"}
    return Linear("blhk,hkd->bld", (h, k, d), axes, **make)(y)


class ChannelConv(nn.Module):
  """Convolves every channel by itself: float[b y x c], kernel [ky kx 1 c] of odd sides."""

  size: int = 3
  bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape, axes = (self.size, self.size, 1, x.shape[-1]), (None, None, "conv_in", "conv_out")
    kernel = self.param("kernel", named(lecun, *axes), shape, jnp.float32).astype(self.dtype)
    x = x.astype(self.dtype)
    if platform() == "cpu":
      y = sum_of_shifts(x, kernel)
    else:
      x = shard(x, "batch", "image", None, "act_mlp")  # see `layers.Conv`
      names = ("NHWC", "HWIO", "NHWC")
      options: Any = {"dimension_numbers": names, "feature_group_count": x.shape[-1]}
      y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **options)
    if self.bias:
      y += self.param("bias", named(zeros, "conv_out"), x.shape[-1:], jnp.float32).astype(y.dtype)
    return y


@jax.custom_vjp
def sum_of_shifts(x: Array, kernel: Array) -> Array:
  """A convolution by channel as a sum of products: on CPU 4 to 15 times faster with gradients."""
  weights = kernel.reshape(-1, kernel.shape[-1])
  products = (s * w for s, w in zip(shifts(x, len(kernel)), weights, strict=True))
  return functools.reduce(operator.add, products)


def shifts(x: Array, size: int) -> list[Array]:
  """What each of the kernel's size x size places sees: float[b y x c] each, zeros outside."""
  y, w, p = x.shape[1], x.shape[2], size // 2
  x = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
  return [x[:, i : i + y, j : j + w] for i in range(size) for j in range(size)]


def forward(x, kernel):
  return sum_of_shifts(x, kernel), (x, kernel)


def backward(saved, grad):
  x, kernel = saved
  grad = jax.lax.optimization_barrier(grad)  # or every product computes it anew
  places = [(s * grad).sum((0, 1, 2)) for s in shifts(x, len(kernel))]
  return sum_of_shifts(grad, kernel[::-1, ::-1]), jnp.stack(places).reshape(kernel.shape)


sum_of_shifts.defvjp(forward, backward)


class GatedConv(nn.Module):
  """Mix-FFN: widen, SiLU, 3 x 3 per channel, gate by SiLU of the second half, narrow.

  float[b y x d] -> float[b y x d]; `width` is that of one half, `norm` ends it by an RMSNorm.
  """

  width: int
  norm: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    d, f = x.shape[-1], self.width
    make: Any = {"dtype": self.dtype, "init": lecun}
    h = Linear("byxd,df->byxf", (d, 2 * f), ("embed", "mlp"), bias=True, name="up", **make)(x)
    h = ChannelConv(dtype=self.dtype, name="depth")(nn.silu(h))  # [b y x 2f]
    h, gate = jnp.split(h, 2, -1)
    h = shard(h * nn.silu(gate), "batch", "image", None, "act_mlp")  # [b y x f]
    y = Linear("byxf,fd->byxd", (f, d), ("mlp", "embed"), name="down", **make)(h)
    return RMSNorm(1e-5, bias=True, name="norm")(y) if self.norm else y
