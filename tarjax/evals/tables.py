"""Rows of a benchmark's parquet files: all their texts at once, their pictures as they are asked.

DATA holds each data set in a folder of its own, as Hugging Face's lmms-lab/NAME has it.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tarjax.config import UserError
from tarjax.data import fields
from tarjax.evals.benchmarks import Benchmark

ROWS = 16  # read at a time, for their pictures may be large


class Table:
  """The rows of one benchmark in a folder that holds its data set.

  Args:
    benchmark: an entry of the table of benchmarks.
    data: the folder that holds the data sets' folders.
    limit: units to use, the first of the file; 0 is all.

  Raises:
    UserError: a folder, file or column is missing, a file is damaged, or a row is of another
      layout; it is named.
  """

  def __init__(self, benchmark: Benchmark, data: Path, limit: int = 0):
    self.benchmark = benchmark
    self.folder = _folder(benchmark, data)
    self.files = _files(self.folder, benchmark.files)
    texts = [c for c in benchmark.columns if c not in benchmark.pictures]
    found = [_read(file, benchmark.columns, texts) for file in self.files]
    self._sizes = [len(rows) for rows in found]
    rows = [row for part in found for row in part]
    self.chosen = _first(benchmark, rows, limit or math.inf)  # numbers of rows
    self.rows = [rows[i] for i in self.chosen]
    if not self.rows:
      raise UserError(f"{benchmark.name}: the files in {self.folder} have no rows")
    try:  # questions and true answers, before a model is loaded
      self.questions = [benchmark.question(row) for row in self.rows]
      benchmark.judge(self.rows, [""] * len(self.rows))
    except (ValueError, TypeError, AttributeError) as e:
      raise UserError(f"{benchmark.name}: {self.folder} is of another layout: {e}") from e
    self._pictures = self._linked()

  def __len__(self) -> int:
    return len(self.rows)

  def images(self, wanted: Sequence[int]) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Numbers among `rows`, ascending -> (number, its pictures uint8[y x 3])."""
    place = {self.chosen[i]: i for i in wanted}
    start = 0
    for file, size in zip(self.files, self._sizes, strict=True):
      here = {row - start: i for row, i in place.items() if start <= row < start + size}
      if here:
        for at, row in _rows(file, sorted(here), self.benchmark.columns):
          yield here[at], self._decode(file, at, row)
      start += size

  def _decode(self, file: Path, at: int, row: dict) -> list[np.ndarray]:
    read = fields.image_reader(file.parent)
    try:
      if linked := self.benchmark.linked:
        row = row | {linked[2]: self._pictures.get(row[linked[1]])}
      return [read(image) for image in self.benchmark.images(row)]
    except (ValueError, OSError) as e:
      raise UserError(f"{self.benchmark.name}: row {at} of {file}: {e}") from e

  def _linked(self) -> dict[Any, Any]:
    """Pictures that lie in files of their own, undecoded, by their ids."""
    if not self.benchmark.linked:
      return {}
    patterns, key, column = self.benchmark.linked
    wanted = {row[key] for row in self.rows}
    found = {}
    for file in _files(self.folder, patterns):
      for row in _read(file, ("id", column), ("id", column)):
        if row["id"] in wanted:
          found[row["id"]] = row[column]
    if missing := sorted(wanted - found.keys()):
      raise UserError(f"{self.benchmark.name}: no file in {self.folder} has picture {missing[0]!r}")
    return found


def _folder(benchmark: Benchmark, data: Path) -> Path:
  if not data.is_dir():
    raise UserError(f"--data {data} is not a folder")
  for name in benchmark.folders:
    if (data / name).is_dir():
      return data / name
  names = " or ".join(benchmark.folders)
  raise UserError(f"{benchmark.name}: {data} has no folder {names} (a copy of lmms-lab/{names})")


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
  for pattern in patterns:
    if files := sorted(folder.glob(pattern)):
      return files
  raise UserError(f"{folder} has no file like {' or '.join(patterns)}")


def _open(file: Path) -> Any:
  try:
    import pyarrow.parquet  # an optional requirement
  except ImportError as e:
    raise UserError("parquet needs pyarrow: pip install -r requirements-data.txt") from e
  try:
    return pyarrow.parquet.ParquetFile(file)
  except (ValueError, OSError) as e:
    raise UserError(f"{file} is not a whole parquet file: {e}") from e


def _read(file: Path, needed: Sequence[str], columns: Sequence[str]) -> list[dict]:
  """Some columns of a file that must have others too."""
  with _open(file) as opened:
    there = opened.schema_arrow.names
    if missing := [c for c in needed if c not in there]:
      raise UserError(f"{file} has no column {missing[0]!r}; it has {', '.join(there)}")
    try:
      return opened.read(columns=list(columns)).to_pylist()
    except (ValueError, OSError) as e:
      raise UserError(f"{file} cannot be read: {e}") from e


def _rows(file: Path, wanted: list[int], columns: Sequence[str]) -> Iterator[tuple[int, dict]]:
  """Whole rows by their numbers, ascending; row groups without any of them are not read."""
  with _open(file) as opened:
    start = 0
    for group in range(opened.num_row_groups):
      size = opened.metadata.row_group(group).num_rows
      inside = {i for i in wanted if start <= i < start + size}
      at = start
      try:
        parts = opened.iter_batches(ROWS, row_groups=[group], columns=list(columns))
        for part in parts if inside else ():
          for i in range(part.num_rows):
            if at + i in inside:
              yield at + i, part.slice(i, 1).to_pylist()[0]
          at += part.num_rows
      except (ValueError, OSError) as e:
        raise UserError(f"{file} cannot be read after row {at}: {e}") from e
      start += size


def _first(benchmark: Benchmark, rows: list[dict], limit: float) -> list[int]:
  """Numbers of the rows of the first `limit` units."""
  units: dict[Any, int] = {}
  chosen = []
  for i, row in enumerate(rows):
    unit = benchmark.unit(row) if benchmark.unit else i
    if units.setdefault(unit, len(units)) < limit:
      chosen.append(i)
  return chosen
