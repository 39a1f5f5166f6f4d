"""Parquet files with the images' bytes in them, as Hugging Face datasets are stored.

Parquet is read by row group, and the last few stay in memory. In order, as `tarjax.encode` reads,
that costs nothing; at random, a row may cost its whole group: train on groups of some hundred rows,
or encode first.
"""

import collections
import threading
from pathlib import Path
from typing import Any

from tarjax.data import fields, files
from tarjax.data.damage import located

KEPT_GROUPS = 4


class Parquet:
  """Rows of parquet files; see `tarjax.data.fields` for the columns they may have.

  Args:
    path: a file, a pattern or a folder.
    images: the folder that images given as paths are relative to; the file's own by default.
    task: what an image with a caption becomes, "i2t" or "t2i".

  Raises:
    ValueError: no such file, one without a readable footer, or pyarrow is not installed; on
      reading, `Damaged`.
  """

  def __init__(self, path: str, images: str = "", task: str = "i2t"):
    self._groups: list[tuple[str, int, int]] = []  # file, row group, its first row in the file
    sizes = []
    for file in files.find(path, (".parquet",)):
      first = 0
      for group, rows in enumerate(_group_sizes(file)):
        self._groups.append((file, group, first))
        sizes.append(rows)
        first += rows
    self._parts = files.Parts(sizes)
    self._images, self._task = images, fields.check_task(task)
    self._open()

  def _open(self) -> None:
    self._lock = threading.Lock()
    self._kept: collections.OrderedDict[int, Any] = collections.OrderedDict()

  def __getstate__(self) -> dict:  # worker processes read for themselves
    return {k: v for k, v in vars(self).items() if k not in ("_lock", "_kept")}

  def __setstate__(self, state: dict) -> None:
    vars(self).update(state)
    self._open()

  def __len__(self) -> int:
    return len(self._parts)

  def where(self, index: int) -> tuple[str, int, str]:
    number, at = self._parts.locate(index)
    name, _, first = self._groups[number]
    return name, first + at, "row"

  def __getitem__(self, index: int) -> dict:
    number, at = self._parts.locate(index)
    name, row, unit = self.where(index)
    path = Path(name)
    with located(path, row, unit):
      return fields.make_record(
        self._table(number).slice(at, 1).to_pylist()[0],
        fields.image_reader(self._images or path.parent),
        name=f"{path.stem}/{row}",
        source=path.stem,
        task=self._task,
      )

  def _table(self, number: int) -> Any:
    """A row group, from memory or from its file; one that fails fails for each of its rows."""
    with self._lock:
      if number not in self._kept:
        try:
          self._kept[number] = _read_group(*self._groups[number][:2])
        except (ValueError, OSError) as e:
          if isinstance(e, OSError) and e.errno is not None:
            raise
          self._kept[number] = ValueError(f"its row group cannot be read: {e}")
        if len(self._kept) > KEPT_GROUPS:
          self._kept.popitem(last=False)
      self._kept.move_to_end(number)
      table = self._kept[number]
    if isinstance(table, ValueError):
      raise ValueError(str(table))
    return table


def _pyarrow() -> Any:
  try:
    import pyarrow.parquet  # an optional requirement
  except ImportError as e:
    raise ValueError("parquet needs pyarrow: pip install -r requirements-data.txt") from e
  return pyarrow.parquet


def _group_sizes(file: str) -> list[int]:
  """Rows in each row group of a file."""
  parquet = _pyarrow()
  try:
    footer = parquet.read_metadata(file)
  except (ValueError, OSError) as e:
    raise ValueError(f"{file} is not a whole parquet file: {e}") from e
  return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]


def _read_group(file: str, group: int) -> Any:
  with _pyarrow().ParquetFile(file) as opened:
    return opened.read_row_group(group)
