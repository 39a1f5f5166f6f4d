"""Losses: pure functions on arrays, float32 inside whatever the inputs are."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

Array = jax.Array
IGNORED = -100  # a label that counts for nothing
UNUSED = -1e30  # the logit of a table's padding row


def mse(pred: Array, target: Array) -> Array:
  """Mean squared error over all elements: float[...], float[...] -> float32[]."""
  return jnp.square(pred.astype(jnp.float32) - target.astype(jnp.float32)).mean()


def cosine_loss(pred: Array, target: Array, eps: float = 1e-8) -> Array:
  """1 - cosine of each pair of vectors, TA-Tok's reconstruction loss (paper Sec. 3.1).

  Args:
    pred: float[... d].
    target: float[... d].
    eps: least length that a vector is divided by.

  Returns:
    float32[...], one value per vector.
  """
  pred, target = pred.astype(jnp.float32), target.astype(jnp.float32)

  def inverse_length(x):  # finite gradient at zero, unlike 1 / norm
    return jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1), eps**2))

  return 1 - (pred * target).sum(-1) * inverse_length(pred) * inverse_length(target)


def sigmoid_loss(image_embeds: Array, text_embeds: Array, scale: Array, bias: Array) -> Array:
  """SigLIP's loss: every image against every text, pairs on the diagonal (arXiv 2303.15343).

  Args:
    image_embeds: float[b d], unit length.
    text_embeds: float[b d], unit length.
    scale: float[], the learned parameter; its exponential multiplies the cosine.
    bias: float[].

  Returns:
    float32[], summed over images and averaged over texts.
  """
  images, texts = image_embeds.astype(jnp.float32), text_embeds.astype(jnp.float32)
  cosine = jnp.einsum("td,id->ti", texts, images, precision=jax.lax.Precision.HIGHEST)
  sign = 2 * jnp.eye(cosine.shape[0]) - 1
  return -jax.nn.log_sigmoid(sign * (cosine * jnp.exp(scale) + bias)).sum(-1).mean()


def contrastive_loss(image_embeds: Array, text_embeds: Array, scale: Array) -> Array:
  """CLIP's InfoNCE: of all texts the right one, of all images the right one (arXiv 2103.00020).

  All are those of the global batch, however it is split over devices.

  Args:
    image_embeds: float[b d], unit length.
    text_embeds: float[b d], unit length; row i is the text of image i.
    scale: float[], which multiplies the cosine.

  Returns:
    float32[], the mean over images and texts.
  """
  images, texts = image_embeds.astype(jnp.float32), text_embeds.astype(jnp.float32)
  logits = scale * jnp.einsum("id,td->it", images, texts, precision=jax.lax.Precision.HIGHEST)
  both = [jax.nn.logsumexp(logits, axis) - jnp.diagonal(logits) for axis in (0, 1)]
  return jnp.stack(both).mean()


def token_losses(logits: Array, labels: Array) -> Array:
  """Cross entropy per token: float[... v], int32[...] -> float32[...]; 0 for a negative label."""
  logits = logits.astype(jnp.float32)
  kept = labels >= 0
  picked = jnp.take_along_axis(logits, jnp.where(kept, labels, 0)[..., None], -1)[..., 0]
  return jnp.where(kept, jax.nn.logsumexp(logits, -1) - picked, 0.0)


def masked_cross_entropy(
  logits: Array, labels: Array, weights: Array | None = None
) -> tuple[Array, Array]:
  """Weighted cross entropy of aligned logits and labels (shift them before).

  Args:
    logits: float[... v].
    labels: int32[...]; a negative one (-100) is not counted.
    weights: float[...] or bool[...]; None counts every label once.

  Returns:
    sum float32[] of weighted losses, count float32[] (sum of the weights); their ratio is the mean.
  """
  counted = (labels >= 0).astype(jnp.float32)
  if weights is not None:
    counted = counted * weights.astype(jnp.float32)
  return (token_losses(logits, labels) * counted).sum(), counted.sum()


def chunked_cross_entropy(
  hidden: Array,
  table: Array,
  labels: Array,
  chunk: int,
  used: int | None = None,
  masks: Mapping[str, Array] | None = None,
) -> tuple[Array, Array, dict[str, tuple[Array, Array]]]:
  """Cross entropy of `hidden @ table.T` that never holds float32[b l v].

  Under a mesh every device takes its own batch rows and, over the axis `model`, its own words. The
  gradient is computed in the pass that computes the loss, so no logits are computed twice, and the
  table's is summed in float32 and reduced over the devices once. On one device positions without a
  label, half of a packed batch, cost nothing.

  Args:
    hidden: float[b l d], aligned with the labels (shift them before); products have its dtype.
    table: float32[v d], split along v only.
    labels: int32[b l]; a negative one (-100) is not counted.
    chunk: positions whose logits exist at a time; the length is padded to a multiple.
    used: rows of the table that are words; the others are left out.
    masks: name -> bool[b l]; each gives a sum and a count of its own, for example image words. No
      gradient flows through these.

  Returns:
    sum float32[], count float32[], and {name: (sum, count)} for every mask.
  """
  masks = masks or {}
  counted = jnp.stack([labels >= 0, *((labels >= 0) & m for m in masks.values())], -1)  # [b l m]
  used = len(table) if used is None else used
  both: Any = _summed_losses(chunk, used, hidden, table, labels, counted)
  total, sums = both
  counts = counted.astype(jnp.float32).sum((0, 1))
  return total, counts[0], {name: (sums[i], counts[i]) for i, name in enumerate(masks, 1)}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed_losses(chunk, used, hidden, table, labels, counted):
  """Sum of token losses float32[], and its parts under `counted`, float32[m]."""
  sums, _ = _over_devices(chunk, used, False, hidden, table, labels, counted)
  return sums[0], sums


def _losses_and_gradients(chunk, used, hidden, table, labels, counted):
  sums, grads = _over_devices(chunk, used, True, hidden, table, labels, counted)
  return (sums[0], sums), grads


def _scaled_gradients(chunk, used, grads, cotangents):
  dx, dw = grads
  return (dx * cotangents[0]).astype(dx.dtype), dw * cotangents[0], None, None


_summed_losses.defvjp(_losses_and_gradients, _scaled_gradients)


def _over_devices(chunk, used, gradients, *arrays):
  """`_in_chunks` on every device's part of the batch and of the words, or here on one device."""
  run = functools.partial(_in_chunks, chunk, used, gradients)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return _labelled_first(functools.partial(run, None), *arrays)
  rows, words = PartitionSpec(("data", "fsdp")), PartitionSpec(("model", "fsdp"))
  out = (PartitionSpec(), (rows, words) if gradients else ())
  places = (rows, words, rows, rows)
  return jax.shard_map(
    functools.partial(run, mesh.shape), in_specs=places, out_specs=out, check_vma=False
  )(*arrays)


def _labelled_first(run, hidden, table, labels, counted):
  """`run` on the same positions in another order, so that whole chunks have no label."""
  b, l, d = hidden.shape
  order = jnp.argsort(labels.ravel() < 0, stable=True)

  def pack(x):  # [b l ...], the first b of the order in the first column
    return x.reshape(b * l, *x.shape[2:])[order].reshape(l, b, *x.shape[2:]).swapaxes(0, 1)

  sums, gradients = run(pack(hidden), table, pack(labels), pack(counted))
  if not gradients:
    return sums, ()
  dx = gradients[0].swapaxes(0, 1).reshape(b * l, d)
  dx = jnp.zeros_like(dx).at[order].set(dx, unique_indices=True)
  return sums, (dx.reshape(b, l, d), gradients[1])


def _in_chunks(chunk, used, gradients, mesh, hidden, table, labels, counted):
  """One device's share: sums float32[m] over all devices, and the gradients of sums[0].

  Args:
    chunk, used: as in `chunked_cross_entropy`.
    gradients: whether to compute them, else ().
    mesh: axis sizes, or None on one device, which passes over chunks without a label.
    hidden, table, labels, counted: the local parts; the table's along `model` and `fsdp`.
  """
  (b, l, d), dtype, first = hidden.shape, hidden.dtype, 0
  weights = table.astype(dtype)  # cast before it travels
  rows = len(table) * (mesh["model"] * mesh["fsdp"] if mesh else 1)
  if mesh:
    weights = jax.lax.all_gather(weights, "fsdp", tiled=True)
    first = jax.lax.axis_index("model") * len(weights)  # of this device's words

  def over_words(x, reduce):
    return reduce(x, "model") if mesh and mesh["model"] > 1 else x

  def split(x, fill):  # [b l ...] -> [l/chunk b chunk ...]
    x = jnp.pad(x, ((0, 0), (0, -l % chunk)) + ((0, 0),) * (x.ndim - 2), constant_values=fill)
    return x.reshape(b, -1, chunk, *x.shape[2:]).swapaxes(0, 1)

  def step(carry, xs):
    sums, dw = carry
    x, label, part = xs
    logits = jnp.einsum("bld,vd->blv", x, weights, preferred_element_type=jnp.float32)
    word = first + jax.lax.broadcasted_iota(jnp.int32, (1, 1, len(weights)), 2)
    if used < rows:
      logits = jnp.where(word < used, logits, UNUSED)
    top = over_words(logits.max(-1, keepdims=True), jax.lax.pmax)
    norm = over_words(jnp.exp(logits - top).sum(-1, keepdims=True), jax.lax.psum)
    hit = word == label[..., None]
    picked = over_words(jnp.where(hit, logits, 0).sum(-1), jax.lax.psum)  # [b chunk]
    losses = jnp.where(label >= 0, (jnp.log(norm) + top)[..., 0] - picked, 0)
    sums += (losses[..., None] * part).sum((0, 1))
    if not gradients:
      return (sums, dw), None
    kept = (label >= 0)[..., None]
    dlogits = jnp.where(kept, jnp.exp(logits - top) / norm - hit, 0).astype(dtype)
    dw += jnp.einsum("blv,bld->vd", dlogits, x, preferred_element_type=jnp.float32)
    dx = jnp.einsum("blv,vd->bld", dlogits, weights, preferred_element_type=jnp.float32)
    return (sums, dw), over_words(dx, jax.lax.psum).astype(dtype)

  def passed(carry, xs):
    return carry, jnp.zeros_like(xs[0]) if gradients else None

  def step_or_not(carry, xs):
    return jax.lax.cond((xs[1] >= 0).any(), step, passed, carry, xs)

  dw = jnp.zeros(weights.shape, jnp.float32) if gradients else None
  start = (jnp.zeros(counted.shape[-1], jnp.float32), dw)
  xs = (split(hidden, 0), split(labels, IGNORED), split(counted, False))
  (sums, dw), dx = jax.lax.scan(step if mesh else step_or_not, start, xs)
  if mesh:
    sums = jax.lax.psum(sums, ("data", "fsdp"))
  if not gradients:
    return sums, ()
  if mesh:
    dw = jax.lax.psum(jax.lax.psum_scatter(dw, "fsdp", tiled=True), "data")
  return sums, (dx.swapaxes(0, 1).reshape(b, -1, d)[:, :l], dw)
