"""Distances between sets of features: Frechet's, the Inception score, precision and recall."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

NEIGHBOUR = 3  # whose distance is the radius of a sample's ball
BLOCK = 10_000  # samples at a time in both directions, within which float16 must be finite


@dataclasses.dataclass
class Statistics:
  """Mean and covariance of vectors, added up in float64 as they come: `add(float[b d])`."""

  count: int = 0
  total: np.ndarray | float = 0.0
  products: np.ndarray | float = 0.0

  def add(self, features: np.ndarray) -> None:
    x = np.asarray(features, np.float64)
    self.count += len(x)
    self.total = self.total + x.sum(0)
    self.products = self.products + x.T @ x

  def gaussian(self) -> tuple[np.ndarray, np.ndarray]:
    """float64[d], float64[d d]; the covariance is the samples', over n - 1.

    Raises:
      ValueError: fewer than two vectors.
    """
    if self.count < 2:
      raise ValueError(f"a covariance needs two pictures, not {self.count}")
    mean = np.asarray(self.total) / self.count
    centred = np.asarray(self.products) - self.count * np.outer(mean, mean)
    return mean, centred / (self.count - 1)


def frechet(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
  """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) of two Gaussians.

  The trace of the root is that of the symmetric S1^1/2 S2 S1^1/2, which has real eigenvalues.
  """
  (mean1, cov1), (mean2, cov2) = one, other
  values, vectors = np.linalg.eigh(cov1)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  shared = np.linalg.eigvalsh(root @ cov2 @ root)
  trace = np.trace(cov1) + np.trace(cov2) - 2 * np.sqrt(np.maximum(shared, 0)).sum()
  return float(np.sum((mean1 - mean2) ** 2) + trace)


def inception_score(logits: np.ndarray, parts: list[np.ndarray]) -> float:
  """exp of the mean divergence of a picture's classes from those of its part; mean over parts.

  Args:
    logits: float[n v].
    parts: row numbers of each part.
  """
  x = np.asarray(logits, np.float64)
  log_p = x - np.logaddexp.reduce(x, axis=1, keepdims=True)
  scores = []
  for rows in parts:
    log_part = log_p[rows]
    part = np.exp(log_part)
    divergence = (part * (log_part - np.log(part.mean(0)))).sum(1)
    scores.append(np.exp(divergence.mean()))
  return float(np.mean(scores))


def precision_recall(reference: np.ndarray, samples: np.ndarray, half: bool) -> tuple[float, float]:
  """Share of the samples in a ball of the reference, and the other way (arXiv 1904.06991).

  A ball reaches to the third nearest of its own set.

  Args:
    reference: float32[n d].
    samples: float32[m d].
    half: distances in float16 where all of a block are finite, as ADM's evaluator has them.
  """
  radii = [_radii(x, half) for x in (reference, samples)]
  inside = np.zeros(len(samples), bool), np.zeros(len(reference), bool)
  for i in range(0, len(reference), BLOCK):
    for j in range(0, len(samples), BLOCK):
      rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
      apart = distances(reference[rows], samples[columns], half)
      inside[0][columns] |= (apart <= radii[0][rows, None]).any(0)
      inside[1][rows] |= (apart <= radii[1][None, columns]).any(1)
  return float(inside[0].mean()), float(inside[1].mean())


def _radii(x: np.ndarray, half: bool) -> np.ndarray:
  """Squared distance of each sample to its third nearest: float32[n]."""
  found = []
  for i in range(0, len(x), BLOCK):
    parts = [distances(x[i : i + BLOCK], x[j : j + BLOCK], half) for j in range(0, len(x), BLOCK)]
    nearest = [
      np.partition(p, min(NEIGHBOUR, p.shape[1] - 1), 1)[:, : NEIGHBOUR + 1] for p in parts
    ]
    found.append(np.sort(np.concatenate(nearest, 1), 1)[:, NEIGHBOUR])
  return np.concatenate(found)


def distances(a: np.ndarray, b: np.ndarray, half: bool) -> np.ndarray:
  """Squared distances float32[n m]."""
  if half:
    found = np.asarray(_squared(jnp.asarray(a, jnp.float16), jnp.asarray(b, jnp.float16)))
    if np.isfinite(found).all():
      return found.astype(np.float32)
  return np.asarray(_squared(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)))


@jax.jit
def _squared(a, b):
  product = jnp.matmul(a, b.T, precision="highest")
  return jnp.maximum((a * a).sum(1)[:, None] - 2 * product + (b * b).sum(1)[None], 0)
