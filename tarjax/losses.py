"""Losses: pure functions on arrays, float32 inside whatever the inputs are."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

Array = jax.Array
IGNORED = -100  # a label that counts for nothing


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
  head: Callable[[Array], Array],
  hidden: Array,
  labels: Array,
  chunk: int,
  masks: Mapping[str, Array] | None = None,
) -> tuple[Array, Array, dict[str, tuple[Array, Array]]]:
  """Cross entropy that never holds float32[b l v]: the head runs on `chunk` positions at a time.

  The backward pass computes each chunk's logits again.

  Args:
    head: float[b chunk d] -> float[b chunk v], a pure function (it may close over its weights).
    hidden: float[b l d], aligned with the labels (shift them before).
    labels: int32[b l]; a negative one (-100) is not counted.
    chunk: positions per step; the length is padded to a multiple.
    masks: name -> bool[b l]; each gives a sum and a count of its own, for example image words.

  Returns:
    sum float32[], count float32[], and {name: (sum, count)} for every mask.
  """
  masks = masks or {}
  b, l = labels.shape
  pad = -l % chunk

  def split(x, fill):  # [b l ...] -> [l/chunk b chunk ...]
    x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2), constant_values=fill)
    return x.reshape(b, -1, chunk, *x.shape[2:]).swapaxes(0, 1)

  # The count of labels needs no logits; each row of `parts` is one of the sums that are asked for.
  parts = jnp.stack([labels >= 0, *((labels >= 0) & m for m in masks.values())], -1)  # [b l m]

  def step(total, xs):
    x, label, part = xs
    losses = token_losses(head(x), label)  # [b chunk]
    return total + (losses[..., None] * part).sum((0, 1)), None

  xs = (split(hidden, 0), split(labels, IGNORED), split(parts, False))
  zero = jnp.zeros(parts.shape[-1], jnp.float32)
  sums, _ = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), zero, xs)
  counts = parts.astype(jnp.float32).sum((0, 1))
  named = {name: (sums[i], counts[i]) for i, name in enumerate(masks, 1)}
  return sums[0], counts[0], named
