"""The building blocks: the only matmuls, norms and convolutions.

Letters: b batch, l length, s cached length, d embed, f mlp, h heads, g kv heads, k head dim,
v vocab, n layers, c channels, y x image rows and columns. Parameters are float32; matmul inputs
are cast to `dtype`; norms and softmax are float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tarjax.sharding import named, platform, shard

Array = jax.Array
Init = Callable[..., Any]


def normal(std: float = 0.02) -> Init:
  return nn.initializers.normal(std)


xavier = nn.initializers.xavier_uniform()
lecun = nn.initializers.lecun_normal()
zeros = nn.initializers.zeros
ones = nn.initializers.ones


def as_matrix(init: Init, rows: int) -> Init:
  """`init` for a kernel of heads, seen as the matrix [rows, rest], which has the right fans."""

  def flat(key, shape, dtype):
    return init(key, (rows, math.prod(shape) // rows), dtype).reshape(shape)

  return flat


class Linear(nn.Module):
  """One einsum with a named kernel.

  For example Linear("bld,dhk->blhk", (d, h, k), ("embed", "heads", "head_dim")). `bias` adds one
  over the output letters that the kernel has.
  """

  eqn: str
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  bias: bool = False
  dtype: jnp.dtype = jnp.float32
  init: Init = normal()
  bias_init: Init = zeros

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = self.param("kernel", named(self.init, *self.axes), self.shape, jnp.float32)
    y = contract(self.eqn, x.astype(self.dtype), kernel.astype(self.dtype))
    if self.bias:
      letters, out = self.eqn.split(",")[1].split("->")
      kept = [letters.index(c) for c in out if c in letters]
      axes, shape = tuple(self.axes[i] for i in kept), tuple(self.shape[i] for i in kept)
      y += self.param("bias", named(self.bias_init, *axes), shape, jnp.float32).astype(self.dtype)
    return y


def contract(eqn: str, x: Array, kernel: Array) -> Array:
  """The einsum of `Linear`, where it is faster as a product of matrices.

  On CPU that is always, for then the gradient is twice as fast; on TPU where heads do not fill the
  128 lanes, for then the product is as wide as all heads and not as their padded sum. It needs
  leading + contracted letters in the input, contracted + new ones in the kernel.
  """
  inputs, out = eqn.split("->")
  given, letters = inputs.split(",")
  lead = len(given) - sum(c in letters for c in given)
  flat = letters.startswith(given[lead:]) and out == given[:lead] + letters[len(given) - lead :]
  on, new = platform(), kernel.shape[len(given) - lead :]
  ragged = kernel.ndim > 2 and any(n % 128 for n in (*x.shape[lead + 1 :], *new[1:]))
  if not flat or not (on == "cpu" or on == "tpu" and ragged):
    return jnp.einsum(eqn, x, kernel)
  rows = math.prod(x.shape[lead:])
  left = (-1, rows) if on == "cpu" else (*x.shape[:lead], rows)
  y = x.reshape(left) @ kernel.reshape(rows, -1)
  return y.reshape(*x.shape[:lead], *new)


class Embed(nn.Module):
  """A table of `vocab` rows, split along the rows only: ids int32[...] -> float[... d]."""

  vocab: int
  width: int
  dtype: jnp.dtype = jnp.float32
  init: Init = normal()

  def setup(self):
    init = named(self.init, "vocab", "act_embed")
    self.embedding = self.param("embedding", init, (self.vocab, self.width), jnp.float32)

  def __call__(self, ids: Array) -> Array:
    return look_up(self.vocab, self.dtype, self.embedding, ids)

  def attend(self, x: Array) -> Array:
    """Tied output head: float[b l d] -> float32[b l v]."""
    table = self.embedding.astype(self.dtype)
    return jnp.einsum("bld,vd->blv", x.astype(self.dtype), table).astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def look_up(vocab: int, dtype: Any, table: Array, ids: Array) -> Array:
  """Rows of float32[v d] as `dtype`: ids int32[b ...] -> float[b ... d].

  A word that comes often has its gradient summed in float32 over all devices, for the sum of
  thousands of small values in bfloat16 stops growing. What travels are the values, not tables:
  each device sums those of its own words.
  """
  del vocab
  return table.astype(dtype)[ids]


def _table_gradient(vocab, dtype, ids, g):
  def add(first, rows, ids, g):  # -> float32[rows d], of the words from `first` on
    mine = jnp.where((ids >= first) & (ids < first + rows), ids - first, rows)
    table = jnp.zeros((rows, g.shape[-1]), jnp.float32)
    return table.at[mine].add(g.astype(jnp.float32), mode="drop")

  def over_devices(ids, g):
    ids, g = jax.lax.all_gather((ids, g), "fsdp", tiled=True)
    rows = vocab // (mesh.shape["model"] * mesh.shape["fsdp"])
    return jax.lax.psum(add(jax.lax.axis_index(("model", "fsdp")) * rows, rows, ids, g), "data")

  del dtype
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return add(0, vocab, ids, g), None
  rows, words = PartitionSpec(("data", "fsdp")), PartitionSpec(("model", "fsdp"))
  run = jax.shard_map(over_devices, in_specs=(rows, rows), out_specs=words, check_vma=False)
  return run(ids, g), None


look_up.defvjp(lambda v, dtype, table, ids: (look_up(v, dtype, table, ids), ids), _table_gradient)


def standardize(x: Array, eps: float) -> Array:
  """float[... d] -> float32[... d] of mean 0 and variance 1: a LayerNorm without parameters."""
  y = x.astype(jnp.float32)
  y = y - y.mean(-1, keepdims=True)
  return y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)


class LayerNorm(nn.Module):
  """float[... d] -> float[... d], float32 inside, with scale and bias."""

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", named(ones, "act_embed"), (x.shape[-1],), jnp.float32)
    bias = self.param("bias", named(zeros, "act_embed"), (x.shape[-1],), jnp.float32)
    return (standardize(x, self.eps) * scale + bias).astype(x.dtype)


class RMSNorm(nn.Module):
  """float[... d] -> float[... d], float32 inside, with scale and, if asked for, bias."""

  eps: float = 1e-6
  bias: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", named(ones, "act_embed"), (x.shape[-1],), jnp.float32)
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps) * scale
    if self.bias:
      y += self.param("bias", named(zeros, "act_embed"), (x.shape[-1],), jnp.float32)
    return y.astype(x.dtype)


class GroupNorm(nn.Module):
  """float[b y x c] -> float[b y x c], float32 inside: moments over rows, columns and one group.

  Moments are taken per channel and folded into groups after that, which leaves one scale and one
  shift per image and channel. Reductions over a split channel axis are 3 to 5 times slower on CPU.

  Raises:
    ValueError: channels that do not divide into groups.
  """

  groups: int = 32
  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, c = x.shape[0], x.shape[-1]
    if c % self.groups:
      raise ValueError(f"{c} channels do not divide into {self.groups} groups")
    scale = self.param("scale", named(ones, "channels"), (c,), jnp.float32)
    bias = self.param("bias", named(zeros, "channels"), (c,), jnp.float32)

    def group_mean(moment):  # [b c] -> [b c]
      grouped = moment.reshape(b, self.groups, -1).mean(-1)
      return jnp.repeat(grouped, c // self.groups, -1)

    y = x.astype(jnp.float32).reshape(b, -1, c)
    mean = group_mean(y.mean(1))
    var = jnp.maximum(group_mean(jnp.square(y).mean(1)) - jnp.square(mean), 0)
    gain = jax.lax.rsqrt(var + self.eps) * scale
    y = y * gain[:, None] + (bias - mean * gain)[:, None]
    return y.reshape(x.shape).astype(x.dtype)


class Conv(nn.Module):
  """2-D convolution, float[b y x c] -> float[b y' x' c'], kernel [ky kx c/groups c'].

  Groups are cut over `model`, as they must be: for an axis of the mesh that cuts neither pictures
  nor groups, XLA's partitioner multiplies the kernel's gradient by the axis's size.
  """

  features: int
  size: int | tuple[int, int] = 3
  stride: int = 1
  padding: Any = "SAME"
  groups: int = 1
  bias: bool = True
  dtype: jnp.dtype = jnp.float32
  init: Init = lecun

  @nn.compact
  def __call__(self, x: Array) -> Array:
    ky, kx = (self.size, self.size) if isinstance(self.size, int) else self.size
    shape = (ky, kx, x.shape[-1] // self.groups, self.features)
    axes = (None, None, "conv_in", "conv_out")
    kernel = self.param("kernel", named(self.init, *axes), shape, jnp.float32)
    if self.groups > 1:
      x = shard(x, "batch", "image", None, "act_mlp")
    y = jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      (self.stride, self.stride),
      self.padding,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=self.groups,
    )
    if self.bias:
      y += self.param("bias", named(zeros, "conv_out"), (self.features,), jnp.float32).astype(
        self.dtype
      )
    return y
