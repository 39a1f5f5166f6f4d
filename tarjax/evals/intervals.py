"""Scores from counts, and how sure they are: a bootstrap over the things that were drawn.

A benchmark counts per unit (a question, an image with its questions, a circular item), so that a
score is a function of sums over units, and a resampled score the same function of weighted sums.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

Counts = Mapping[str, float]
Metrics = Callable[[Mapping[str, Any]], dict[str, Any]]

RESAMPLES = 1000
LEVEL = 0.95
CHUNK = 100  # resamples at a time, of some ten thousand units


def score(counts: Sequence[Counts], metrics: Metrics, seed: int = 0) -> dict[str, dict[str, float]]:
  """Metrics of all units, each with the ends of its 95% interval.

  Args:
    counts: per unit, {name: number}; a name that a unit lacks counts 0.
    metrics: {name: sum, of any shape} -> {metric: value of that shape}; other sums are 0.
    seed: of the resamples.

  Returns:
    {metric: {"value", "low", "high"}}.
  """
  names = sorted({name for unit in counts for name in unit})
  table = np.array([[unit.get(name, 0.0) for name in names] for unit in counts], np.float64)
  rng = np.random.default_rng(seed)
  n, parts = len(table), []
  for _ in range(RESAMPLES // CHUNK if n else 0):
    parts.append(rng.multinomial(n, np.full(n, 1 / n), CHUNK) @ table)  # [resamples names]
  drawn = metrics(named(names, np.concatenate(parts) if parts else np.zeros((1, 0))))
  tail = 100 * (1 - LEVEL) / 2
  found = {}
  for metric, value in metrics(named(names, table.sum(0))).items():
    low, high = np.percentile(drawn[metric], [tail, 100 - tail])
    found[metric] = {"value": float(value), "low": float(low), "high": float(high)}
  return found


def named(names: Sequence[str], sums: np.ndarray) -> Mapping[str, Any]:
  """float64[... names] -> {name: float64[...]}, 0 for any other name."""
  return collections.defaultdict(float, {name: sums[..., i] for i, name in enumerate(names)})


def ratio(part, whole):
  """part / whole, and 0 of nothing."""
  whole = np.asarray(whole, np.float64)
  return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0.0)


def of_runs(values: Sequence[float]) -> tuple[float, float, float]:
  """Mean of two or more runs that differ in their seed, and the ends of Student's interval."""
  mean, n = float(np.mean(values)), len(values)
  reach = special.stdtrit(n - 1, (1 + LEVEL) / 2) * float(np.std(values, ddof=1)) / n**0.5
  return mean, mean - reach, mean + reach
