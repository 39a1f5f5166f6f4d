"""The endless stream of records that batches are made of, as a pure function of (seed, index)."""

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import grain

from tarjax.data.damage import Damaged, Quarantine, TooManyDamaged, located
from tarjax.data.sources import Source

ATTEMPTS = 1000  # damaged records in a row


def draw(seed: int, index: int) -> int:
  """64 random bits for (seed, index): the splitmix64 generator's output at that counter."""
  mask = 2**64 - 1
  z = (seed * 0xD1342543DE82EF95 + (index + 1) * 0x9E3779B97F4A7C15) & mask
  z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
  z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
  return z ^ (z >> 31)


class Mixture:
  """index -> record: sources are shuffled anew in each pass and mixed in proportion.

  Grain shuffles and mixes plain numbers, under which all records of all sources are counted. The
  place of a damaged record is taken by another of its source, drawn by (seed, index): what stands
  at an index is the same for every host, thread and restart, and every other index keeps its
  record.

  Args:
    members: the sources, none of them empty.
    weights: positive, one for each.
    quarantine: told of every record.
  """

  def __init__(
    self, members: Sequence[Source], weights: Sequence[float], seed: int, quarantine: Quarantine
  ):
    self._members, self._seed, self._quarantine = members, seed, quarantine
    self._starts, parts = [0], []
    for i, member in enumerate(members):
      start, stop = self._starts[-1], self._starts[-1] + len(member)
      numbers = grain.MapDataset.range(start, stop).seed(draw(seed, i) % 2**32)
      parts.append(numbers.shuffle().repeat())
      self._starts.append(stop)
    self._numbers = grain.MapDataset.mix(parts, weights)

  def __call__(self, index: int, use: Callable[[dict, int], Any] | None = None) -> Any:
    """The record at an index, or what `use(record, index)` makes of it: one that `use` refuses is
    damaged too."""
    number: Any = self._numbers[index]
    k = bisect.bisect(self._starts, number) - 1
    member, at = self._members[k], number - self._starts[k]
    for attempt in range(ATTEMPTS):
      try:
        made = member[at]
        if use:
          with located(*member.where(at)):
            made = use(made, index)
      except Damaged as e:
        self._quarantine.add(e)
        at = draw(draw(self._seed, index), attempt) % len(member)
      else:
        self._quarantine.passed()
        return made
    raise TooManyDamaged(f"{ATTEMPTS} records in a row are damaged: see {self._quarantine.path}")
