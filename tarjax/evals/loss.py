"""Validation loss: the task's own loss on the held-out split, without an update."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np


class Evaluator:
  """Means over the same full batches at every call, so every held-out example counts once.

  Args:
    predict_fn: (state, batch, index, static) -> dict of scalars with "loss".
    batches: called once; its first `count` batches are kept.
    static: index -> static arguments of the loss; their values are also reported apart.
    count: number of batches.
  """

  def __init__(
    self,
    predict_fn: Callable[[Any, Any, int, dict], dict],
    *,
    batches: Callable[[], Iterable],
    static: Callable[[int], dict],
    count: int,
  ):
    self.predict_fn, self.batches, self.static, self.count = predict_fn, batches, static, count
    self.kept: list | None = None

  def run(self, state) -> Iterator[tuple[str, float]]:
    """Yields ("val/loss", mean), each other metric, and "val/loss_scale2" per static value."""
    if self.kept is None:
      self.kept = [batch for _, batch in zip(range(self.count), self.batches(), strict=False)]
    found: dict[str, list[float]] = {}
    for i, batch in enumerate(self.kept):
      static = self.static(i)
      values = jax.device_get(self.predict_fn(state, batch, i, static))
      for name, value in values.items():
        found.setdefault(name, []).append(float(value))
      for name, value in static.items():
        found.setdefault(f"loss_{name}{value}", []).append(float(values["loss"]))
    for name, seen in found.items():
      yield f"val/{name}", float(np.mean(seen))
