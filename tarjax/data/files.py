"""The files of a source, and where among them a record lies."""

import bisect
import glob
import itertools
from collections.abc import Sequence
from pathlib import Path


def find(path: str | Path, suffixes: Sequence[str]) -> list[str]:
  """A file, a pattern such as `train-*.tar`, or a folder -> its files in order of their names.

  In a folder, and all folders within, the files that end in one of `suffixes` are meant.

  Raises:
    ValueError: there is none.
  """
  if Path(path).is_file():
    return [str(path)]
  if Path(path).is_dir():
    inside = (f for f in Path(path).rglob("*") if f.suffix.lower() in suffixes and f.is_file())
    files = [str(f) for f in inside if not f.name.startswith(".")]
  else:
    files = [f for f in glob.glob(str(path), recursive=True) if Path(f).is_file()]
  if not files:
    raise ValueError(f"{path}: there is no file like *{' or *'.join(suffixes)}")
  return sorted(files)


class Parts:
  """Records numbered through over parts with `counts` records each."""

  def __init__(self, counts: Sequence[int]):
    self._ends = list(itertools.accumulate(counts))

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def locate(self, index: int) -> tuple[int, int]:
    """Number of a record -> number of its part, number within it.

    Raises:
      IndexError: a number outside of 0..len-1.
    """
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of a source of {len(self)}")
    part = bisect.bisect(self._ends, index)
    return part, index - (self._ends[part - 1] if part else 0)
