"""Batches: a mixture of sources, turned into arrays, where step -> batch is a pure function.

Step k holds rows k*b .. k*b+b-1 of an endless stream, whatever the number of processes, workers,
threads or restarts: each process makes the rows its devices need. Another record of its source
takes the place of a damaged one, and WORKDIR/quarantine.jsonl lists it. What a batch holds: `rows`.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from tarjax.data import sources
from tarjax.data.damage import Quarantine
from tarjax.data.mixture import Mixture
from tarjax.data.rows import FORMATS, DataConfig, Records, Row, make_config


def make_batches(config, *, start_step: int = 0, sharding=None, split: str = "train", fields=None):
  """Endless batches of config.data from step `start_step` on; reaching it costs nothing.

  Args:
    config: the whole ConfigDict: data, batch, seed and workdir are read.
    sharding: of the leading axis. With one, batches are global jax Arrays and each process
      makes only its own rows; without, numpy arrays.
    split: "train" or "test".
    fields: what the stage can learn from, `Task.fields`; other records are damaged ones.

  Returns:
    A `Batches` iterator.

  Raises:
    ValueError: a wrong config.data, or sources without what the format needs.
  """
  data = make_config(config.data)
  records = mix(data, workdir=config.workdir, split=split, seed=config.seed)
  format_ = FORMATS[data.format](data, records, config, split, fields)
  rows = range(config.batch) if sharding is None else local_rows(sharding, config.batch)
  return Batches(format_, data, config.batch, rows, start_step, sharding)


def sample_ids(config, split: str = "train", fields=None) -> Callable[[int], list[str]]:
  """step -> the ids of the samples in its batch, in order; packed rows hold several."""

  def name(record: dict, index: int) -> str:
    format_.use(record, index)  # as for the batch
    return str(record.get("id", "?"))

  data = make_config(config.data)
  records = mix(data, workdir=config.workdir, split=split, seed=config.seed)
  format_ = FORMATS[data.format](data, records, config, split, fields)

  def ids(step: int) -> list[str]:
    rows = range(step * config.batch, (step + 1) * config.batch)
    return [records(index, name) for row in rows for index in format_.members(row)]

  return ids


def mix(data: DataConfig, *, workdir: str, split: str, seed: int) -> Records:
  """The mixture that config.data.sources describes: index -> record.

  Raises:
    ValueError: an unknown, empty or unreadable source, or weights that are not positive.
  """
  members = []
  for spec in data.sources:
    members.append(sources.make_source(spec, workdir=workdir, split=split, seed=seed))
    if not len(members[-1]):
      raise ValueError(f"config.data.sources: {dict(spec)} holds no record in split {split!r}")
  weights = [float(spec.get("weight", 1.0)) for spec in data.sources]
  if min(weights) <= 0:
    raise ValueError(f"config.data.sources: weights must be positive, not {weights}")
  return Mixture(members, weights, seed, Quarantine(workdir, data.max_damaged))


def local_rows(sharding: jax.sharding.Sharding, batch: int) -> list[int]:
  """Rows of a batch that the devices of this process hold, in order."""
  parts = sharding.addressable_devices_indices_map((batch,)).values()
  return sorted({row for part in parts if part for row in range(batch)[part[0]]})


def read_ahead(
  dataset: grain.MapDataset, threads: int, prefetch: int, workers: int
) -> grain.DatasetIterator:
  """Elements in order, made ahead of their use by threads, or in processes of their own.

  Args:
    threads: of each process; 0 makes an element when it is asked for.
    prefetch: how many elements are made ahead, over all processes.
    workers: processes; 0 makes everything in this one.
  """
  share = -(-prefetch // max(workers, 1))
  elements = dataset.to_iter_dataset(grain.ReadOptions(threads, share if threads else 0))
  if workers:
    if (
      not flags.FLAGS.is_parsed()
    ):  # Grain reads its debug flags; the verbs have flags of their own
      flags.FLAGS.mark_as_parsed()
    elements = elements.mp_prefetch(grain.MultiprocessingOptions(workers, share))
  return iter(elements)


class Batches:
  """Iterator over batches; `stats` is the packer's account of this process (else empty)."""

  def __init__(self, format_, data: DataConfig, batch, rows, start_step, sharding):
    self._sharding, self._batch = sharding, batch
    self.stats: Mapping[str, int] = getattr(format_, "stats", {})
    steps = grain.MapDataset.source(Told(Steps(format_.row, batch, rows)))[start_step:]
    self._steps = read_ahead(steps, data.threads, data.prefetch, data.workers)

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, Any]:
    batch = next(self._steps)
    if isinstance(batch, Exception):
      self.close()
      raise batch
    if self._sharding is None:
      return batch
    return {
      k: jax.make_array_from_process_local_data(self._sharding, v, (self._batch, *v.shape[1:]))
      for k, v in batch.items()
    }

  def close(self) -> None:
    """Ends the threads and worker processes."""
    self._steps.close()


class Steps:
  """Random access: step -> the local part of its batch."""

  def __init__(self, row: Callable[[int], Row], batch: int, rows: Sequence[int]):
    self._row, self._batch, self._rows = row, batch, rows

  def __len__(self) -> int:
    return sys.maxsize // self._batch

  def __getitem__(self, index: Any) -> Row:
    rows = [self._row(index * self._batch + j) for j in self._rows]
    for key in rows[0]:
      shapes = {row[key].shape for row in rows}
      if len(shapes) > 1:
        hint = "; set config.data.size" if key == "image" else ""
        raise ValueError(f"{key!r} has shapes {sorted(shapes)} in the batch of step {index}{hint}")
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


class Told:
  """Random access: step -> its batch, or the error that says why there is none.

  An error that is raised in a worker process makes Grain's threads wait for each other, so errors
  travel as elements, and `Batches` raises them.
  """

  def __init__(self, steps: Steps):
    self._steps = steps

  def __len__(self) -> int:
    return len(self._steps)

  def __getitem__(self, index: Any) -> Row | Exception:
    try:
      return self._steps[index]
    except (ValueError, OSError) as e:
      return e
