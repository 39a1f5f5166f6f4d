"""Attention as pure functions: one `attend` for every chip, and rotary positions.

Letters: b batch, l length, s length of the context, h heads, g kv heads, k head dim. The same
numbers come out within rounding whichever way they are computed: the splash kernel on TPU, cuDNN
on GPU, plain products elsewhere, and wherever a mask is given as an array.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec

from tarjax.sharding import platform

Array = jax.Array
MASKED = -1e30  # finite: a row that is masked everywhere gives a mean, not NaN
STRIP, STRIPS = 64, 16  # least length and greatest number of strips of a causal product on CPU
LARGE = 2**20  # bytes of a kv head's logits above which a CPU makes those of one at a time
BLOCK = 1024  # rows and columns of one step of the splash kernel, at most
CUDNN = "dot_product_attention_fwd"  # how the name of JAX's primitive begins
LANES = 128  # what the kernel's blocks are multiples of; shorter contexts are plain products


def attend(
  q: Array,
  k: Array,
  v: Array,
  mask: Array | None = None,
  *,
  causal: bool = False,
  segments: Array | None = None,
) -> Array:
  """Softmax attention with grouped kv heads and scale k^-1/2, softmax in float32.

  Args:
    q: float[b l h k].
    k: float[b s g k], h a multiple of g; query head i reads kv head i // (h/g).
    v: float[b s g k].
    mask: broadcastable to [b l s]: bool, True is seen; or float, added to the logits. None sees
      everything that the other two arguments allow.
    causal: a position sees none after it.
    segments: int32[b l], for l = s: a position sees its own segment only. What rows of segment 0,
      which is padding, come out as is unspecified.

  Returns:
    float[b l h k], named "attn" for remat policies, which know cuDNN's by `CUDNN`.
  """
  if mask is None and platform() == "tpu" and fits_kernel(q, k):
    return splash(q, k, v, causal, segments)
  masked = mask is not None or segments is not None
  fused = platform() == "gpu" and fits_cudnn(q, k, masked)
  if segments is not None or (causal and not fused):
    ids = jnp.ones((1, q.shape[1]), jnp.int32) if segments is None else segments
    seen = causal_mask(ids) if causal and not fused else same_segment(ids)
    mask = seen if mask is None else seen & mask
  with jax.named_scope("causal" if causal else "full"):  # plan counts half of a causal product
    if fused:
      return cudnn(q, k, v, mask, causal)
    if mask is not None and causal and platform() == "cpu":
      return lower_half(q, k, v, mask)
    if platform() == "cpu" and is_large(q, k):
      return head_by_head(q, k, v, mask)
    return plain(q, k, v, mask)


def lower_half(q: Array, k: Array, v: Array, mask: Array) -> Array:
  """`plain` under a causal mask, in strips of queries that leave out most of what none may see.

  On a CPU, where the softmax takes longer than the products, half the time.
  """
  l = q.shape[1]
  strip = -(-l // min(STRIPS, max(1, l // STRIP)))
  return jnp.concatenate(
    [
      plain(
        q[:, i : i + strip],
        k[:, : i + strip],
        v[:, : i + strip],
        mask[:, i : i + strip, : i + strip],
      )
      for i in range(0, l, strip)
    ],
    1,
  )


def head_by_head(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
  """`plain` in a loop over rows and kv heads, whose logits stay in a CPU's cache.

  A third of the time for SigLIP2's 729 positions.
  """
  b, l, h, d = q.shape
  g = k.shape[2]

  def of_row(xs):
    q, k, v, *masks = xs  # [g l r k], [g s k], [g s k], [l s]
    mask = masks[0][None] if masks else None

    def of_head(xs):
      q, k, v = xs
      return plain(q[None], k[None, :, None], v[None, :, None], mask)[0]

    return jax.lax.map(of_head, (q, k, v))

  rows = (q.reshape(b, l, g, h // g, d).swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2))
  masks = () if mask is None else (jnp.broadcast_to(mask, (b, l, k.shape[1])),)
  return jax.lax.map(of_row, rows + masks).swapaxes(1, 2).reshape(b, l, h, d)


def is_large(q: Array, k: Array) -> bool:
  """Whether a loop over heads pays; over several devices it would take rows from one another."""
  mesh = jax.sharding.get_abstract_mesh()
  logits = q.shape[2] // k.shape[2] * q.shape[1] * k.shape[1]
  return 4 * logits > LARGE and (mesh.empty or mesh.size == 1)


def plain(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
  """Two products and a softmax; arguments as in `attend`."""
  b, l, h, d = q.shape
  g = k.shape[2]
  # heads first: the products are then plain batched matmuls, twice as fast on CPUs
  q = q.reshape(b, l, g, h // g, d).transpose(0, 2, 3, 1, 4).reshape(b, g, -1, d)  # [b g r*l k]
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [b g s k]
  logits = jnp.einsum("bglk,bgsk->bgls", q * d**-0.5, k, preferred_element_type=jnp.float32)
  if mask is not None:
    mask = jnp.broadcast_to(mask, (mask.shape[0], l, k.shape[2]))
    mask = jnp.tile(mask, (1, h // g, 1))[:, None]  # [b 1 r*l s]
    logits = jnp.where(mask, logits, MASKED) if mask.dtype == bool else logits + mask
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
  y = jnp.einsum("bgls,bgsk->bglk", weights.astype(v.dtype), v)
  y = divide(y, weights.sum(-1, keepdims=True))  # fewer numbers than weights
  y = y.reshape(b, g, h // g, l, d)
  return y.transpose(0, 3, 1, 2, 4).reshape(b, l, h, d)


@jax.custom_vjp
def divide(x: Array, by: Array) -> Array:
  """float[... k] / float32[... 1], named "attn"; its gradient needs the quotient and not `x`."""
  return _divide(x, by)[0]


def _divide(x, by):
  y = checkpoint_name((x / by).astype(x.dtype), "attn")
  return y, (y, by)


def _divide_gradient(kept, g):
  y, by = kept
  return (g / by).astype(y.dtype), -(g * y).astype(by.dtype).sum(-1, keepdims=True) / by


divide.defvjp(_divide, _divide_gradient)


def cudnn(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
  """cuDNN's fused kernel, which reads grouped kv heads as they are and skips a causal half."""
  more: dict[str, Any] = {"is_causal": causal}
  if mask is not None:
    mask = jnp.broadcast_to(mask, (len(mask), q.shape[1], k.shape[1]))
    more["mask" if mask.dtype == bool else "bias"] = mask[:, None]
  return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **more)


def fits_cudnn(q: Array, k: Array, masked: bool) -> bool:
  """Whether cuDNN has a kernel for these types, heads and lengths, with its gradient."""
  even = not (masked and (q.shape[1] % 2 or k.shape[1] % 2))
  return even and q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[3] in range(8, 129, 8)


def splash(
  q: Array, k: Array, v: Array, causal: bool, segments: Array | None, interpret: bool = False
) -> Array:
  """The splash kernel over padded lengths; each device runs it on its own batch rows and heads."""
  l, d, s = q.shape[1], q.shape[3], k.shape[1]
  (long, rows), (wide, columns) = blocks(l), blocks(s)
  scope = jax.named_scope("splash_causal" if causal else "splash_full")
  q = (q.astype(jnp.float32) * d**-0.5).astype(q.dtype)
  if segments is None and (long > l or wide > s):
    segments = jnp.ones((q.shape[0], l), jnp.int32)
    context = jnp.ones((q.shape[0], s), jnp.int32)
  else:
    context = segments

  def one(q, k, v, ids):  # [h l k], [g s k]
    mask = (splash_mask.CausalMask if causal else splash_mask.FullMask)((long, wide))
    sizes = splash_kernel.BlockSizes(
      block_q=rows,
      block_kv=columns,
      block_kv_compute=512 if columns % 512 == 0 else columns,
      block_q_dkv=rows,
      block_kv_dkv=columns,
      block_kv_dkv_compute=columns,
      use_fused_bwd_kernel=True,
    )
    kernel = splash_kernel.make_splash_mha(
      splash_mask.MultiHeadMask([mask] * len(q)),
      block_sizes=sizes,
      head_shards=1,
      q_seq_shards=1,
      residual_checkpoint_name="attn",
      interpret=interpret,
    )
    return kernel(q, k, v, splash_kernel.SegmentIds(*ids) if ids else None)

  def local(q, k, v, ids):  # [b l h k]
    q, k, v = (fill(x, n).swapaxes(1, 2) for x, n in ((q, long), (k, wide), (v, wide)))
    ids = ids and (fill(ids[0], long), fill(ids[1], wide))
    with scope:
      out: Any = jax.vmap(one)(q, k, v, ids)
      return out.swapaxes(1, 2)[:, :l]

  ids = () if segments is None else (segments, context)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return local(q, k, v, ids)
  rows_of, heads = PartitionSpec(("data", "fsdp")), PartitionSpec(("data", "fsdp"), None, "model")
  run = jax.shard_map(
    local, in_specs=(heads, heads, heads, rows_of), out_specs=heads, check_vma=False
  )
  return run(q, k, v, ids)


def fits_kernel(q: Array, k: Array) -> bool:
  """Whether lengths and heads are worth the splash kernel, and the mesh divides them."""
  sizes = dict(jax.sharding.get_abstract_mesh().shape)
  even = q.shape[0] % (sizes.get("data", 1) * sizes.get("fsdp", 1)) == 0
  even &= k.shape[2] % sizes.get("model", 1) == 0
  return even and min(q.shape[1], k.shape[1]) >= LANES and q.shape[3] <= 2 * LANES


def blocks(length: int) -> tuple[int, int]:
  """The padded length and the block that divides it: 2048 -> 2048, 1024; 729 -> 768, 768."""
  count = -(-length // BLOCK)
  block = -(-length // (count * LANES)) * LANES
  return count * block, block


def fill(x: Array, length: int) -> Array:
  """Zeros at the end of axis 1, up to `length`."""
  return jnp.pad(x, ((0, 0), (0, length - x.shape[1])) + ((0, 0),) * (x.ndim - 2))


def same_segment(segments: Array) -> Array:
  """int32[b l] (0 is padding) -> bool[b l l]."""
  return (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] > 0)


def causal_mask(segments: Array) -> Array:
  """Segments int32[b l] (0 is padding) -> bool[b l l]: a position sees its segment's past."""
  i = jnp.arange(segments.shape[1])
  return same_segment(segments) & (i[:, None] >= i[None, :])


def rotary_table(positions: Array, head_dim: int, theta: float) -> tuple[Array, Array]:
  """Positions int32[b l] -> cos, sin float32[b l 1 k/2] of the half-split rotation."""
  freq = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angle = positions.astype(jnp.float32)[..., None, None] * freq  # [b l 1 k/2]
  return held(jnp.cos(angle)), held(jnp.sin(angle))


def held(x: Array) -> Array:
  """float32[.. k], the same, which XLA does not compute again in each operation that reads it.

  On CPU it does so with sines, by element: an eighth of the laptop's step in its 36 rotations. An
  optimization barrier is gone before operations are fused; a product is not.
  """
  if platform() != "cpu":
    return x
  return jnp.matmul(x, np.eye(x.shape[-1], dtype=np.float32), precision="highest")


def rotate(x: Array, table: tuple[Array, Array]) -> Array:
  """Half-split rotary embedding: float[b l h k] -> float[b l h k]; the sum is float32.

  On TPU the halves change places by a product with a signed permutation, which is exact: cutting
  the 128 lanes in two costs more than the rotation.
  """
  cos, sin = table
  if platform() == "tpu":
    cos, sin = jnp.concatenate([cos, cos], -1), jnp.concatenate([sin, sin], -1)
    turned = jnp.einsum("blhk,kj->blhj", x, jnp.asarray(quarter_turn(x.shape[-1]), x.dtype))
    return (x.astype(jnp.float32) * cos + turned.astype(jnp.float32) * sin).astype(x.dtype)
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


@functools.cache
def quarter_turn(head_dim: int) -> np.ndarray:
  """R with (a, b) R = (-b, a): float32[k k]."""
  eye = np.eye(head_dim // 2, dtype=np.float32)
  return np.block([[0 * eye, eye], [-eye, 0 * eye]])
