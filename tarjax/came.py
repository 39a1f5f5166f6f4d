"""CAME, the optimizer of Dif-DTok (arXiv 2307.02047), as an optax transformation.

Adafactor's factored squares give an update of about unit size; how far updates stray from their
mean, factored too, shrinks the step. What is a matrix here was one in the original, whatever heads
and scanned layers have made of its axes.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


class CameState(NamedTuple):
  """Trees like the parameters, float32. What a parameter does not use is float32[1]."""

  mean: Any  # of updates, like the parameter
  square: Any  # of gradients; for what is no matrix, like the parameter
  rows: Any  # of squared gradients of a matrix, [n r]
  columns: Any  # [n c]
  doubt_rows: Any  # of squared distances of updates from their mean, [n r]
  doubt_columns: Any  # [n c]


def came(
  learning_rate: Any,
  b1: float = 0.9,
  b2: float = 0.999,
  b3: float = 0.9999,
  eps: float = 1e-30,
  eps2: float = 1e-16,
  clip: float = 1.0,
  weight_decay: float = 0.0,
  mask: Any = None,
) -> optax.GradientTransformation:
  """The whole optimizer.

  There is no bias correction: the first steps of a matrix are about ten times the learning rate,
  hence warm up.

  Args:
    learning_rate: a number, or update number -> number.
    b1, b2, b3: decays of the updates' mean, of squared gradients, of squared distances.
    eps, eps2: added to squared gradients and to squared distances.
    clip: the largest root mean square of an update, before it enters the mean.
    weight_decay, mask: as in optax.adamw.
  """
  return optax.chain(
    scale_by_came((b1, b2, b3), (eps, eps2), clip),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )


def scale_by_came(
  betas: tuple[float, float, float], eps: tuple[float, float], clip: float
) -> optax.GradientTransformation:
  """Gradients -> steps, without the learning rate."""

  def init(params):
    def zeros(shape):
      return jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.zeros(shape(p.shape, as_matrices(path, p.shape))), params
      )

    def side(axis):
      return zeros(lambda _, matrix: (matrix[0], matrix[axis]) if matrix else (1,))

    square = zeros(lambda shape, matrix: (1,) if matrix else shape)
    return CameState(zeros(lambda shape, _: shape), square, side(1), side(2), side(1), side(2))

  def update(updates, state, params=None):
    del params
    leaves, tree = jax.tree_util.tree_flatten_with_path(updates)
    states = [CameState(*s) for s in zip(*(jax.tree.leaves(t) for t in state), strict=True)]
    found = [one_step(*leaf, s, betas, eps, clip) for leaf, s in zip(leaves, states, strict=True)]
    parts = zip(*(s for _, s in found), strict=True)
    return tree.unflatten([step for step, _ in found]), CameState(*map(tree.unflatten, parts))

  return optax.GradientTransformation(init, update)


def one_step(path, gradient: Array, state: CameState, betas, eps, clip: float):
  """One parameter's (step, new state). Layers [n] of a stack are parameters of their own."""
  shape, matrix = gradient.shape, as_matrices(path, gradient.shape)
  view = matrix or (shape[0] if stacked(path) else 1, -1)
  g = gradient.astype(jnp.float32).reshape(view)  # [n r c] or [n v]
  if matrix:
    rows, columns, scale = factored(g**2 + eps[0], state.rows, state.columns, betas[1])
    state = state._replace(rows=rows, columns=columns)
  else:
    square = betas[1] * state.square + (1 - betas[1]) * (g**2 + eps[0]).reshape(shape)
    state = state._replace(square=square)
    scale = jax.lax.rsqrt(square).reshape(view)
  update = g * scale
  rms = jnp.sqrt((update**2).mean(tuple(range(1, g.ndim)), keepdims=True))
  update /= jnp.maximum(1, rms / clip)
  step = mean = betas[0] * state.mean.reshape(view) + (1 - betas[0]) * update
  if matrix:
    doubt = (update - mean) ** 2 + eps[1]
    rows, columns, scale = factored(doubt, state.doubt_rows, state.doubt_columns, betas[2])
    state = state._replace(doubt_rows=rows, doubt_columns=columns)
    step = mean * scale
  step = step.reshape(shape).astype(gradient.dtype)
  return step, state._replace(mean=mean.reshape(shape))


def factored(square: Array, rows: Array, columns: Array, decay: float):
  """Takes float32[n r c] into its averages over columns and over rows.

  Returns:
    rows float32[n r], columns float32[n c], and 1 / root of their product, float32[n r c].
  """
  rows = decay * rows + (1 - decay) * square.mean(2)
  columns = decay * columns + (1 - decay) * square.mean(1)
  inverse = jax.lax.rsqrt(rows / rows.mean(1, keepdims=True))
  return rows, columns, inverse[:, :, None] * jax.lax.rsqrt(columns)[:, None]


def stacked(path) -> bool:
  """Whether a parameter's leading axis is that of scanned layers."""
  return any(key.key == "blocks" for key in path)


def as_matrices(path, shape: tuple[int, ...]) -> tuple[int, int, int] | None:
  """(n, r, c) of a parameter that is n matrices, as many as there are layers, or else None.

  A kernel [d h k] is d x hk, and one [h k d] under the name "out" is hk x d. Vectors, also those
  that heads give two axes, and convolutions wider than a pixel are no matrices (SANA's variant).
  """
  layers, inner = (shape[0], shape[1:]) if stacked(path) else (1, shape)
  if path[-1].key in ("bias", "scale") or len(inner) not in (2, 3):
    return None
  rows = 2 if len(inner) == 3 and path[-2].key == "out" else 1
  return layers, math.prod(inner[:rows]), math.prod(inner[rows:])
