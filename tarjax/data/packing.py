"""Fixed-length rows of several examples, where row r is a pure function of (seed, r).

A window of consecutive examples is packed into a fixed number of rows, first fit in order of
decreasing length. Windows know nothing of each other, so any row can be made by any process at
any time. What does not fit a window's rows is left out and counted.
"""

import collections
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from tarjax.data.tokens import IGNORE, Vocab, is_image

Example = tuple[np.ndarray, np.ndarray]  # tokens, labels: int32[l] each
Window = tuple[list[tuple[int, Example]], list[list[int]]]  # indexed examples; which each row holds
KEPT_WINDOWS = 3


def plan_rows(lengths: list[int], rows: int, length: int) -> list[list[int]]:
  """First-fit decreasing: for each row, the positions in `lengths` it holds."""
  plan: list[list[int]] = [[] for _ in range(rows)]
  room = np.full(rows, length)
  for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # stable: ties in order
    fits = room >= lengths[i]
    row = int(fits.argmax())
    if fits[row]:
      plan[row].append(i)
      room[row] -= lengths[i]
  return plan


def fill_row(examples: list[Example], length: int, pad: int) -> dict[str, np.ndarray]:
  """Examples -> tokens, labels, segments, positions: int32[length] each.

  Segments count from 1 and are 0 in padding; positions restart in each; the first label of a
  segment is -100, for nothing of its own segment comes before it.
  """
  row = {
    "tokens": np.full(length, pad, np.int32),
    "labels": np.full(length, IGNORE, np.int32),
    "segments": np.zeros(length, np.int32),
    "positions": np.zeros(length, np.int32),
  }
  at = 0
  for segment, (tokens, labels) in enumerate(examples, 1):
    part = slice(at, at + len(tokens))
    row["tokens"][part], row["labels"][part] = tokens, labels
    row["labels"][at] = IGNORE
    row["segments"][part] = segment
    row["positions"][part] = np.arange(len(tokens))
    at += len(tokens)
  return row


def fit(example: Example, length: int, vocab: Vocab) -> Example | None:
  """Truncates an example to `length`; None when that would cut an image or leave no label."""
  tokens, labels = example
  if len(tokens) > length:
    if is_image(vocab, tokens[length - 1 : length + 1]).all():
      return None
    tokens, labels = tokens[:length], labels[:length]
  return (tokens, labels) if (labels[1:] != IGNORE).any() else None


class Packer:
  """Rows of packed examples; `row` may be called from any thread, in any order.

  Args:
    example: index -> example, a pure function. Window w packs [w * window, (w + 1) * window).
    rows: rows per window; 0 takes as many as window 0 needs, and two standard errors of a
      window's total length more, so that nearly all examples find a place.

  Attributes:
    stats: over the windows packed so far by this process: "examples", "skipped" (an image would
      be cut, or nothing to learn), "left_out" (no room), "tokens" and "room".
  """

  def __init__(
    self,
    example: Callable[[int], Example],
    vocab: Vocab,
    *,
    length: int,
    window: int,
    rows: int = 0,
    seed: int = 0,
  ):
    self._example, self._vocab = example, vocab
    self._length, self._window, self._seed = length, window, seed
    self._lock = threading.Lock()
    self._windows: collections.OrderedDict[int, Future] = collections.OrderedDict()
    self.stats: collections.Counter[str] = collections.Counter()
    self.rows = rows
    if not rows:
      examples = self._examples(0)
      self.rows = self._choose_rows(examples)
      self._windows[0] = Future()
      self._windows[0].set_result(self._pack(0, examples))

  def __getstate__(self) -> dict:  # a worker process packs for itself
    return {k: v for k, v in vars(self).items() if k not in ("_lock", "_windows")}

  def __setstate__(self, state: dict) -> None:
    vars(self).update(state)
    self._lock = threading.Lock()
    self._windows = collections.OrderedDict()

  def row(self, r: int) -> dict[str, np.ndarray]:
    """Row r: tokens, labels, segments, positions: int32[length] each."""
    examples, plan = self._cached(r // self.rows)
    chosen = [examples[i][1] for i in plan[r % self.rows]]
    return fill_row(chosen, self._length, self._vocab.pad)

  def members(self, r: int) -> list[int]:
    """The indices of the examples in row r."""
    examples, plan = self._cached(r // self.rows)
    return [examples[i][0] for i in plan[r % self.rows]]

  def _choose_rows(self, examples: list[tuple[int, Example]]) -> int:
    lengths = np.array([len(tokens) for _, (tokens, _) in examples])
    if not lengths.size:
      raise ValueError(
        f"none of the first {self._window} examples fits a row of {self._length} tokens; raise "
        "config.data.length"
      )
    plan = plan_rows(lengths.tolist(), len(lengths), self._length)
    needed = sum(bool(row) for row in plan)
    return math.ceil(needed * (1 + 2 * lengths.std() / lengths.mean() / len(lengths) ** 0.5))

  def _examples(self, window: int) -> list[tuple[int, Example]]:
    """The examples of a window that can be learnt from, with their indices."""
    span = range(window * self._window, (window + 1) * self._window)
    fitted = ((i, fit(self._example(i), self._length, self._vocab)) for i in span)
    return [(i, example) for i, example in fitted if example is not None]

  def _pack(self, window: int, examples: list[tuple[int, Example]]) -> Window:
    """Examples of a window and, for each of its rows, which of them it holds."""
    lengths = [len(tokens) for _, (tokens, _) in examples]
    plan = plan_rows(lengths, self.rows, self._length)
    placed = [i for row in plan for i in row]
    with self._lock:
      self.stats["examples"] += self._window
      self.stats["skipped"] += self._window - len(examples)
      self.stats["left_out"] += len(examples) - len(placed)
      self.stats["tokens"] += sum(lengths[i] for i in placed)
      self.stats["room"] += self.rows * self._length
    # First fit puts the long examples into the first rows: mix them before they make batches.
    order = np.random.default_rng((self._seed, window)).permutation(self.rows)
    return examples, [plan[i] for i in order]

  def _cached(self, window: int) -> Window:
    """The packed window; threads that ask for one that is being packed wait for it."""
    with self._lock:
      future = self._windows.get(window)
      if mine := future is None:
        future = self._windows[window] = Future()
      self._windows.move_to_end(window)
      if len(self._windows) > KEPT_WINDOWS:
        self._windows.popitem(last=False)
    if mine:
      try:
        future.set_result(self._pack(window, self._examples(window)))
      except BaseException as e:
        future.set_exception(e)
        with self._lock:
          self._windows.pop(window, None)
    return future.result()
