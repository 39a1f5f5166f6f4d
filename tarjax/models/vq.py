"""Vector quantisation: code search, TA-Tok's SimVQ quantiser, and its choice of codebook rows.

TA-Tok's codebook is C = E W: E holds frozen rows of a language model's token embeddings, W is
trained (paper Eq. 1-3; SimVQ, arXiv 2411.02038). Table 9 compares it with ordinary codebooks.
Letters: t tokens, e codebook entries.
Everything here is float32 at full matmul precision.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from tarjax.models.layers import Array, Linear, normal
from tarjax.models.siglip2 import unit
from tarjax.sharding import named, platform

LANES = 128
LAST = 2**31 - 1


def nearest_code(z: Array, codebook: Array, block: int = 8192) -> tuple[Array, Array]:
  """The nearest entry by Euclidean distance; the first of equals. No gradient flows.

  Under a mesh every device searches for its own part of the batch, and over the axis `model` among
  its own part of the codebook; the result is the same.

  Args:
    z: float[b ... d].
    codebook: float[e d].
    block: entries compared at a time; the distances held are [t block].

  Returns:
    indices int32[b ...], squared distance float32[b ...].

  Raises:
    ValueError: widths that differ.
  """
  if z.shape[-1] != codebook.shape[-1]:
    raise ValueError(f"features are {z.shape[-1]} wide, the codebook {codebook.shape[-1]}")
  flat = jax.lax.stop_gradient(z).astype(jnp.float32).reshape(-1, z.shape[-1])  # [t d]
  table = jax.lax.stop_gradient(codebook).astype(jnp.float32)
  mesh = jax.sharding.get_abstract_mesh()
  rows = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
  parts = 1 if mesh.empty else mesh.shape["model"]
  if mesh.empty or len(z) % rows or len(table) % parts:
    value, index = search(flat, table, block)
  else:

    def local(flat, part):
      value, index = search(flat, part, block)
      if parts > 1:
        index += jax.lax.axis_index("model") * len(part)
        value, index = (jax.lax.all_gather(x, "model", axis=1) for x in (value, index))
        value, index = first_min(value, index)
      return value, index

    own = PartitionSpec(("data", "fsdp"))
    places = (own, PartitionSpec("model"))
    value, index = jax.shard_map(local, in_specs=places, out_specs=own, check_vma=False)(
      flat, table
    )
  distance = jnp.maximum(value + jnp.square(flat).sum(-1), 0)
  return index.reshape(z.shape[:-1]), distance.reshape(z.shape[:-1])


def search(flat: Array, table: Array, block: int) -> tuple[Array, Array]:
  """float32[t d], float32[e d] -> least |row|^2 - 2 row.z float32[t], and its row int32[t]."""
  norm = jnp.square(table).sum(-1)  # [e]

  def among(rows, norms):  # |z|^2 is the same for all entries and would only add rounding
    product = jnp.einsum("td,ed->te", flat, rows, precision=jax.lax.Precision.HIGHEST)
    return first_min(norms - 2 * product)

  if len(table) <= block:
    return among(table, norm)
  pad = -len(table) % block
  rows = jnp.pad(table, ((0, pad), (0, 0))).reshape(-1, block, table.shape[1])
  norms = jnp.pad(norm, (0, pad), constant_values=jnp.inf).reshape(-1, block)

  def step(best, xs):
    value, index = among(xs[0], xs[1])
    nearer = value < best[0]  # strictly: earlier blocks win ties
    return (jnp.where(nearer, value, best[0]), jnp.where(nearer, index + xs[2], best[1])), None

  start = (jnp.full(len(flat), jnp.inf), jnp.zeros(len(flat), jnp.int32))
  offsets = jnp.arange(len(rows), dtype=jnp.int32) * block
  return jax.lax.scan(step, start, (rows, norms, offsets))[0]


def first_min(d: Array, ids: Array | None = None) -> tuple[Array, Array]:
  """Least value of each row and where it first is: float32[t e] -> float32[t], int32[t].

  With `ids` int32[t e], the least id among the equals takes the place of where.

  One reduction of (value, index) pairs. On TPU the compiler keeps a running minimum whose value
  nobody reads in bfloat16, argmin's always: there the values are compared as integers. On CPU,
  reducing over a middle axis first lets it run over vector lanes, twice as fast as argmin.
  """

  def lower(a, b):
    left = (a[0] < b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
    return jnp.where(left, a[0], b[0]), jnp.where(left, a[1], b[1])

  ids = jax.lax.broadcasted_iota(jnp.int32, d.shape, 1) if ids is None else ids
  if platform() == "tpu":
    value, index = jax.lax.reduce((ordered(d), ids), (np.int32(LAST),) * 2, lower, (1,))
    return jax.lax.bitcast_convert_type(ordered(value), jnp.float32), index
  pairs, worst = (d, ids), (np.float32(np.inf), np.int32(LAST))
  if platform() == "cpu" and d.shape[1] % LANES == 0:
    cut = (d.shape[0], -1, LANES)
    pairs = jax.lax.reduce((pairs[0].reshape(cut), pairs[1].reshape(cut)), worst, lower, (1,))
  value, index = jax.lax.reduce(tuple(pairs), worst, lower, (1,))
  return value, index


def ordered(x: Array) -> Array:
  """float32 -> int32 in the same order; of that, the bits of the float32 again."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  return bits ^ ((bits >> 31) & LAST)


def identity(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
  """Initialises W: the first codebook is the language model's embeddings."""
  return jnp.eye(*shape, dtype=dtype)


class SimVq(nn.Module):
  """Quantiser with the codebook C = E W + b.

  `embedding` (E) is a parameter so that checkpoints hold it, but no gradient reaches it. A
  negative `temperature` is learned: the parameter `temperature_inv`.
  """

  codes: int
  width: int
  l2_normalized: bool = False
  stochastic: bool = False
  temperature: float = 0.03

  def setup(self):
    d = self.width
    init = named(normal(d**-0.5), "codebook", "act_embed")
    self.embedding = self.param("embedding", init, (self.codes, d), jnp.float32)
    self.proj = Linear("ed,dk->ek", (d, d), ("embed", "act_embed"), bias=True, init=identity)
    if self.stochastic and self.temperature < 0:
      init = nn.initializers.constant(10.0)
      self.temperature_inv = self.param("temperature_inv", init, (), jnp.float32)

  def _effective(self, rows: Array) -> Array:
    flat = jax.lax.stop_gradient(rows).reshape(-1, self.width)
    with jax.default_matmul_precision("highest"):
      rows = self.proj(flat).reshape(rows.shape)
    return unit(rows) if self.l2_normalized else rows

  def codebook(self) -> Array:
    """float32[e d], unit rows when `l2_normalized`."""
    return self._effective(self.embedding)

  def lookup(self, ids: Array, codebook: Array | None = None) -> Array:
    """int32[...] -> float32[... d]; `codebook` is what `codebook()` returned before, if at hand."""
    return self._effective(self.embedding[ids]) if codebook is None else codebook[ids]

  def __call__(
    self, z: Array, rng: Array | None = None, codebook: Array | None = None
  ) -> dict[str, Array]:
    """Quantises with a straight-through gradient.

    Only the looked-up rows carry a gradient to W, as E[idx] W + b: the codebook of the search is
    a constant (paper Eq. 3).

    Args:
      z: float[b l d].
      rng: key; draws codes when `stochastic`, otherwise and without it the nearest are taken.
      codebook: float32[e d] from `codebook()`; then W gets no gradient at all.

    Returns:
      indices int32[b l]; z float32[b l d] as compared (unit rows when `l2_normalized`); quant
      float32[b l d], the codes with z's gradient; distance float32[b l], squared; commit and
      codebook_loss float32[], means over all elements, or sums over d and means over tokens when
      `l2_normalized`.
    """
    z = z.astype(jnp.float32)
    z = unit(z) if self.l2_normalized else z
    table = jax.lax.stop_gradient(self.codebook() if codebook is None else codebook)
    if self.stochastic and rng is not None:
      indices = self._draw(rng, z, table)
      distance = jnp.square(jax.lax.stop_gradient(z) - table[indices]).sum(-1)
    else:
      indices, distance = nearest_code(z, table)
    code = self.lookup(indices, codebook)  # [b l d]
    fixed, reduce = jax.lax.stop_gradient(code), jnp.sum if self.l2_normalized else jnp.mean
    return {
      "indices": indices,
      "z": z,
      "quant": z + jax.lax.stop_gradient(code - z),
      "distance": distance,
      "commit": reduce(jnp.square(fixed - z), -1).mean(),
      "codebook_loss": reduce(jnp.square(code - jax.lax.stop_gradient(z)), -1).mean(),
    }

  def _draw(self, rng: Array, z: Array, table: Array) -> Array:
    if not self.l2_normalized:
      raise ValueError("a stochastic quantiser needs l2_normalized")
    cos = jnp.einsum("bld,ed->ble", z, table, precision=jax.lax.Precision.HIGHEST)
    inverse = self.temperature_inv if self.temperature < 0 else 1 / self.temperature
    return jax.random.categorical(rng, jax.lax.stop_gradient(cos * inverse)).astype(jnp.int32)


class TableVq(SimVq):
  """The ordinary quantiser: the codebook itself is trained, from random rows (Table 9a, b)."""

  def setup(self):
    init = named(normal(self.width**-0.5), "codebook", "act_embed")
    self.embedding = self.param("table", init, (self.codes, self.width), jnp.float32)
    if self.stochastic and self.temperature < 0:
      init = nn.initializers.constant(10.0)
      self.temperature_inv = self.param("temperature_inv", init, (), jnp.float32)

  def _effective(self, rows: Array) -> Array:
    return unit(rows) if self.l2_normalized else rows


METRICS = ("l2", "sqeuclidean", "cosine")
DIRECTIONS = ("largest", "smallest")


def select_codebook(
  table: np.ndarray,
  k: int,
  metric: str = "l2",
  direction: str = "largest",
  candidates: np.ndarray | None = None,
) -> np.ndarray:
  """The k most representative rows by mean distance to the other candidates (paper Sec. 3.1).

  Args:
    table: float[v d], a language model's token embeddings.
    k: how many.
    metric: "l2", or "sqeuclidean" or "cosine", which need no loop over pairs.
    direction: "largest" keeps the rows that are far from the others, "smallest" the central ones.
    candidates: int[n] row numbers to choose from; None is all.

  Returns:
    int64[k] row numbers, ascending. Equal distances go to the lower number.

  Raises:
    ValueError: an unknown metric or direction, or more rows asked for than there are.
  """
  ids = np.arange(len(table)) if candidates is None else np.unique(candidates)
  if direction not in DIRECTIONS:
    raise ValueError(f"direction {direction!r} is none of {DIRECTIONS}")
  if not 0 < k <= len(ids):
    raise ValueError(f"{k} codes asked for, there are {len(ids)} candidates")
  mean = mean_distances(table if candidates is None else table[ids], metric)
  order = np.argsort(-mean if direction == "largest" else mean, kind="stable")
  return np.sort(ids[order[:k]]).astype(np.int64)


def mean_distances(rows: np.ndarray, metric: str = "l2", block: int = 4096) -> np.ndarray:
  """Mean distance of every row to all others: float[n d] -> float64[n].

  No more than two times `block` rows are ever copied. "l2" compares them in float32, every two
  blocks once, and adds up in float64.

  Raises:
    ValueError: an unknown metric, fewer than two rows, or values that are not finite.
  """
  n = len(rows)
  if metric not in METRICS or n < 2:
    raise ValueError(f"mean distance by {metric!r} of {n} rows: metrics are {METRICS}, rows >= 2")
  cuts = [slice(i, i + block) for i in range(0, n, block)]
  middle = sum(np.asarray(rows[cut], np.float64).sum(0) for cut in cuts) / n
  if not np.isfinite(middle).all():  # asked here: XLA's maximum on CPU turns NaN into 0
    raise ValueError("the table has values that are not finite; no distance means anything")

  def unit_rows(cut: slice) -> np.ndarray:
    x = np.asarray(rows[cut], np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

  if metric == "cosine":
    whole = sum(unit_rows(cut).sum(0) for cut in cuts)
    each = [x @ whole - np.square(x).sum(1) for x in map(unit_rows, cuts)]
    return 1 - np.concatenate(each) / (n - 1)

  def centred(cut: slice) -> np.ndarray:  # distances stay, cancellation shrinks
    return np.asarray(rows[cut], np.float64) - middle

  if metric == "sqeuclidean":  # mean |e_i - e_j|^2 = n/(n-1) (|e_i|^2 + mean |e|^2)
    square = np.concatenate([np.square(centred(cut)).sum(1) for cut in cuts])
    return n / (n - 1) * (square + square.mean())
  total = np.zeros(n)
  for i, first in enumerate(cuts):
    left = centred(first).astype(np.float32)
    total[first] += np.asarray(_distance_sums(left, left, True)[0])
    for second in cuts[i + 1 :]:
      right = centred(second).astype(np.float32)
      sums = _distance_sums(left, right, False)
      total[first] += np.asarray(sums[0])
      total[second] += np.asarray(sums[1])
  return total / (n - 1)


@functools.partial(jax.jit, static_argnums=2)
def _distance_sums(left: Array, right: Array, same: bool) -> tuple[Array, Array]:
  """Sums over the other side of the distances, float32[t] and float32[e].

  When `same`, both sides are the same rows, and the distance of a row to itself is 0.
  """
  product = jnp.einsum("td,ed->te", left, right, precision=jax.lax.Precision.HIGHEST)
  square = jnp.square(left).sum(-1)[:, None] + jnp.square(right).sum(-1) - 2 * product
  distance = jnp.sqrt(jnp.maximum(square, 0))
  distance = jnp.where(jnp.eye(len(left), dtype=bool), 0, distance) if same else distance
  return distance.sum(1), distance.sum(0)
