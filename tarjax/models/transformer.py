"""Blocks of transformers: attention, MLPs, and scans over layers with what they save.

Letters as in `layers`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from tarjax.models.attention import CUDNN, attend, rotate
from tarjax.models.layers import Array, Init, Linear, RMSNorm, as_matrix, normal, xavier
from tarjax.sharding import platform, shard

# What a block may keep for its backward pass: attention's output; queries, keys and values; the
# stream between attention and MLP; and what goes into the MLP's nonlinearity (`up` of a plain one).
SAVED = ("attn", "qkv", "resid", "gate", "up")


def norm_heads(x: Array, name: str) -> Array:
  """An RMSNorm over all heads at once, in the module that calls: float[b l h k]."""
  return RMSNorm(1e-5, name=name)(x.reshape(*x.shape[:2], -1)).reshape(x.shape)


class Attention(nn.Module):
  """Multi-head attention with separate q, k, v kernels [d h k] and an output kernel [h k d].

  `qk_norm` puts an RMSNorm over all heads at once on queries and on keys. Call it with `context`
  for cross-attention, with `rotary` for rotary positions, and with `cache` and `index` for
  decoding: then keys and values are written into the cache at `index` and the whole cache is
  attended to under `mask`. `mask`, `causal` and `segments` are those of `attention.attend`.
  """

  heads: int
  kv_heads: int
  head_dim: int
  qkv_bias: bool = True
  out_bias: bool = True
  dtype: jnp.dtype = jnp.float32
  init: Init = normal()
  qk_norm: bool = False

  @nn.compact
  def __call__(
    self,
    x,
    *,
    context=None,
    mask=None,
    causal=False,
    segments=None,
    rotary=None,
    cache=None,
    index: Any = None,
  ):
    """float[b l d] -> (float[b l d], cache)."""
    d, h, g, k = x.shape[-1], self.heads, self.kv_heads, self.head_dim
    context = x if context is None else context

    def project(name, y, heads):
      shape, axes = (y.shape[-1], heads, k), ("embed", "heads", "head_dim")
      init = as_matrix(self.init, y.shape[-1])
      make: Any = {"bias": self.qkv_bias, "dtype": self.dtype, "init": init, "name": name}
      return Linear("bld,dhk->blhk", shape, axes, **make)(y)

    q = shard(project("q", x, h), "batch", "length", "act_heads", None)  # [b l h k]
    key, value = project("k", context, g), project("v", context, g)  # [b s g k]
    if self.qk_norm:
      q, key = norm_heads(q, "norm_q"), norm_heads(key, "norm_k")
    if rotary is not None:
      q, key = rotate(q, rotary), rotate(key, rotary)
    q, key, value = (checkpoint_name(y, "qkv") for y in (q, key, value))
    if cache is not None:
      start = (0, index, 0, 0)
      cache = {
        "k": jax.lax.dynamic_update_slice(cache["k"], key.astype(cache["k"].dtype), start),
        "v": jax.lax.dynamic_update_slice(cache["v"], value.astype(cache["v"].dtype), start),
      }
      key, value = cache["k"].astype(self.dtype), cache["v"].astype(self.dtype)
    y = attend(q, key, value, mask, causal=causal, segments=segments)  # [b l h k]
    axes = ("heads", "head_dim", "embed")
    make: Any = {"bias": self.out_bias, "dtype": self.dtype, "init": as_matrix(self.init, h * k)}
    return Linear("blhk,hkd->bld", (h, k, d), axes, name="out", **make)(y), cache


class Mlp(nn.Module):
  """fc1, GELU (tanh approximation), fc2, with biases: float[b l d] -> float[b l d]."""

  width: int
  dtype: jnp.dtype = jnp.float32
  init: Init = xavier
  bias_init: Init = normal(1e-6)

  @nn.compact
  def __call__(self, x: Array) -> Array:
    d, f = x.shape[-1], self.width
    make: Any = {
      "bias": True,
      "dtype": self.dtype,
      "init": self.init,
      "bias_init": self.bias_init,
    }
    h = Linear("bld,df->blf", (d, f), ("embed", "mlp"), name="fc1", **make)(x)
    h = checkpoint_name(h, "up")
    h = shard(nn.gelu(h, approximate=True), "batch", "length", "act_mlp")  # [b l f]
    return Linear("blf,fd->bld", (f, d), ("mlp", "embed"), name="fc2", **make)(h)


class GatedMlp(nn.Module):
  """down(silu(gate x) * up x) without biases: float[b l d] -> float[b l d]."""

  width: int
  dtype: jnp.dtype = jnp.float32
  init: Init = normal()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    d, f = x.shape[-1], self.width
    make: Any = {"dtype": self.dtype, "init": self.init}
    up, down = ((d, f), ("embed", "mlp")), ((f, d), ("mlp", "embed"))
    h = nn.silu(checkpoint_name(Linear("bld,df->blf", *up, name="gate", **make)(x), "gate"))
    h = h * checkpoint_name(Linear("bld,df->blf", *up, name="up", **make)(x), "up")
    h = shard(h, "batch", "length", "act_mlp")  # [b l f]
    return Linear("blf,fd->bld", *down, name="down", **make)(h)


def stack(block, depth: int, remat: str, *, in_axes: Any = nn.broadcast, out_axes=0) -> Any:
  """`depth` copies of a block class as one scanned, rematerialized block; params gain [n].

  The block is called as `x, y = block(x, *args)`; `in_axes` says for each of args whether it is
  shared (`nn.broadcast`) or has a layer axis. `remat`: see `remat_policy`.
  """
  if remat != "none":
    block = nn.remat(block, prevent_cse=False, policy=remat_policy(remat))
  return nn.scan(
    block,
    length=depth,
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=in_axes,
    out_axes=out_axes,
    metadata_params={nn.PARTITION_NAME: "layers"},
    unroll=depth if platform() == "cpu" else 1,  # a loop copies all it saves
  )


def remat_policy(remat: str) -> Any:
  """What the backward pass of a block finds saved, and does not compute again.

  Args:
    remat: names out of `SAVED`, as in "attn,qkv"; "full" saves the block's input alone; or a policy
      of `jax.checkpoint_policies`. ("none", for `stack`, saves all.)

  Raises:
    ValueError: another name.
  """
  names = remat.split(",")
  if set(names) <= set(SAVED):
    named: Any = jax.checkpoint_policies.save_only_these_names(*names)

    def also_cudnn(primitive, *args, **params):  # its gradient reads more than what it returns
      return primitive.name.startswith(CUDNN) or named(primitive, *args, **params)

    return also_cudnn if "attn" in names else named
  policy = getattr(jax.checkpoint_policies, "nothing_saveable" if remat == "full" else remat, None)
  if policy is None:
    raise ValueError(
      f"remat={remat!r} is none, full, names out of {','.join(SAVED)}, or a policy of "
      "jax.checkpoint_policies"
    )
  return policy


def init_cache(depth: int, batch: int, length: int, kv_heads: int, head_dim: int, dtype):
  """An empty KV cache: {"k", "v"}, each [n b s g k]."""
  shape = (depth, batch, length, kv_heads, head_dim)
  return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}
