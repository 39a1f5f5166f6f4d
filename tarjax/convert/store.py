"""Trees of arrays on disk in Orbax's plain zarr layout, written and read one piece at a time.

`checkpoint.load` and Orbax itself read what `TreeWriter` writes; `TreeReader` reads that and what
training saves. A stacked parameter has one chunk per layer or smaller ones, so a layer of any
tensor is a few files that no other tensor touches.
"""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from tarjax.convert.plan import Array
from tarjax.convert.rules import ConversionError

CHUNK = 1 << 25  # bytes of a chunk, at most
TILE = 256  # side of the squares in which transposed matrices are copied
WRITERS = 2
TOGETHER = 1 << 30  # bytes of two tensors that may be in memory at once


def chunk_shape(array: Array) -> tuple[int, ...]:
  """One layer, its longest axes halved until it is small: shards of a mesh are then chunks too."""
  chunk = [1, *array.shape[1:]] if array.layered else list(array.shape)
  while math.prod(chunk) * array.dtype.itemsize > CHUNK:
    axis = max(range(len(chunk)), key=lambda i: chunk[i])
    chunk[axis] = -(-chunk[axis] // 2)
  return tuple(max(n, 1) for n in chunk)


def zarr_dtype(dtype: np.dtype) -> str:
  return dtype.name if dtype.kind == "V" or dtype.name.startswith("bfloat") else dtype.str


class TreeWriter:
  """Writes a tree into `path`, which `finish` completes; pieces may come in any order."""

  def __init__(self, path: Path, arrays: Mapping[str, Array]):
    self.path, self.arrays = path, dict(arrays)
    self.chunks = {name: chunk_shape(array) for name, array in arrays.items()}
    self.pool = ThreadPoolExecutor(WRITERS)
    self.pending: list[Future] = []
    for name, array in arrays.items():
      self._make(name, array)

  def _make(self, name: str, array: Array) -> None:
    folder = self.path / name.replace("/", ".")
    folder.mkdir(parents=True)
    meta = {
      "zarr_format": 2,
      "shape": list(array.shape),
      "chunks": list(self.chunks[name]),
      "dtype": zarr_dtype(array.dtype),
      "order": "C",
      "compressor": None,
      "filters": None,
      "fill_value": None,
      "dimension_separator": ".",
    }
    (folder / ".zarray").write_text(json.dumps(meta))

  def write(self, name: str, layer: int | None, value: np.ndarray) -> None:
    """Writes one array, or one layer of it, without waiting; `value` may be a transposed view."""
    array, chunk = self.arrays[name], self.chunks[name]
    if layer is not None:
      value = value[None]
    if value.dtype != array.dtype or value.shape != (
      (1, *array.shape[1:]) if layer is not None else array.shape
    ):
      raise ValueError(f"{name}: {value.shape} of {value.dtype} is no piece of {array}")
    raw = bits(value)
    grid = [range(-(-n // c)) for n, c in zip(value.shape, chunk, strict=True)]
    for index in itertools.product(*grid):
      part = raw[tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunk, strict=True))]
      first = layer is not None and (layer, *index[1:])
      file = ".".join(map(str, first or index)) or "0"
      path = self.path / name.replace("/", ".") / file
      self.pending.append(self.pool.submit(write_chunk, path, part, chunk))

  def wait(self) -> None:
    """Until everything is written; raises what a write raised, such as a full disk."""
    pending, self.pending = self.pending, []
    for future in pending:
      future.result()

  def finish(self) -> None:
    """Writes what makes the folder a tree."""
    self.wait()
    self.pool.shutdown()
    keys = {name: name.split("/") for name in self.arrays}
    tree = {
      str(tuple(path)): {
        "key_metadata": [{"key": key, "key_type": 2} for key in path],
        "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
      }
      for path in keys.values()
    }
    meta = {
      "tree_metadata": tree,
      "use_ocdbt": False,
      "use_zarr3": False,
      "store_array_data_equal_to_fill_value": True,
      "custom_metadata": None,
    }
    (self.path / "_METADATA").write_text(json.dumps(meta))

  def close(self) -> None:
    """Stops writing, whatever is left."""
    self.pool.shutdown(cancel_futures=True)


def bits(array: np.ndarray) -> np.ndarray:
  """The same memory as unsigned integers, which numpy copies faster than bfloat16."""
  return array.view(f"u{array.dtype.itemsize}")


def write_chunk(path: Path, part: np.ndarray, chunk: tuple[int, ...]) -> None:
  """One file; a part at the edge is padded to the whole chunk, as zarr wants it."""
  if part.shape == chunk:
    part = in_order(part)
  else:
    whole = np.zeros(chunk, part.dtype)
    whole[tuple(slice(n) for n in part.shape)] = part
    part = whole
  with open(path, "wb", buffering=0) as f:
    left = part.reshape(-1).view(np.uint8).data
    while len(left):
      left = left[f.write(left) :]


def in_order(array: np.ndarray) -> np.ndarray:
  """C order; a transposed matrix is copied in squares, which is several times faster."""
  if array.flags.c_contiguous or array.ndim < 2:
    return np.ascontiguousarray(array)
  out = np.empty(array.shape, array.dtype)
  fast = int(np.argmin(array.strides))  # the axis along which the memory runs
  if fast == array.ndim - 1:
    out[...] = array
    return out
  near, far = [slice(None)] * array.ndim, array.shape[-1]
  for i in range(0, array.shape[fast], TILE):
    for j in range(0, far, TILE):
      near[fast], near[-1] = slice(i, i + TILE), slice(j, j + TILE)
      out[tuple(near)] = array[tuple(near)]
  return out


class TreeReader:
  """A tree that Orbax or `TreeWriter` wrote; `arrays` has what `.zarray` says of each."""

  def __init__(self, path: Path):
    self.path = path
    try:
      meta = json.loads((path / "_METADATA").read_text())
      leaves = [
        [str(key["key"]) for key in leaf["key_metadata"]]
        for leaf in meta["tree_metadata"].values()
        if leaf["value_metadata"]["value_type"] != "None"
      ]
      self.driver = "zarr3" if meta.get("use_zarr3") else "zarr"
      self.ocdbt = bool(meta["use_ocdbt"])
    except (OSError, ValueError, KeyError, TypeError) as e:
      raise ConversionError(f"{path} is not a tree of arrays: {e}") from e
    self.context = ts.Context()
    self.stores = dict(zip(["/".join(keys) for keys in leaves], self._open(leaves), strict=True))
    self.arrays = {
      name: Array(tuple(s.shape), np.dtype(s.dtype.numpy_dtype), False)
      for name, s in self.stores.items()
    }
    self.held: dict[str, np.ndarray] = {}

  def _open(self, leaves: list[list[str]]) -> list[Any]:
    base = f"file://{os.path.abspath(self.path)}/"
    futures = []
    for keys in leaves:
      name = ".".join(keys) + "/"
      store = {"driver": "ocdbt", "base": base, "path": name} if self.ocdbt else base + name
      spec = {"driver": self.driver, "kvstore": store, "fill_missing_data_reads": False}
      futures.append(ts.open(spec, read=True, context=self.context))
    try:
      return [future.result() for future in futures]
    except (ValueError, OSError) as e:
      raise ConversionError(f"{self.path} is damaged: {e}") from e

  def read(self, name: str, layer: int | None = None) -> np.ndarray:
    """An array, or one layer of it.

    Where the chunks are larger than a layer, the last three arrays are kept in memory.
    """
    store = self.stores[name]
    try:
      if layer is None:
        return store.read().result()
      if store.chunk_layout.read_chunk.shape[0] == 1:
        return store[layer].read().result()
      if name not in self.held:
        self.held = dict([*self.held.items()][-2:])
        self.held[name] = store.read().result()
      return self.held[name][layer]
    except (ValueError, OSError) as e:
      raise ConversionError(f"{self.path} is damaged at {name}: {e}") from e

  def rows(self, name: str, start: int, stop: int) -> np.ndarray:
    """Rows of an array."""
    try:
      return self.stores[name][start:stop].read().result()
    except (ValueError, OSError) as e:
      raise ConversionError(f"{self.path} is damaged at {name}: {e}") from e


def blocks(rows: int, width: int, limit: int = CHUNK) -> Iterator[tuple[int, int]]:
  """Ranges of rows of a float32 table, of at most `limit` bytes each."""
  step = max(1, limit // max(1, 4 * width))
  for start in range(0, rows, step):
    yield start, min(rows, start + step)


def ahead(jobs: Iterable[Any], work: Callable[[Any], Any], size: Callable[[Any], int]):
  """Yields (job, work(job)); the next is worked on meanwhile, unless both are large."""
  with ThreadPoolExecutor(1) as pool:
    waiting: list[tuple[Any, Future]] = []
    for job in jobs:
      if waiting and size(waiting[0][0]) + size(job) > TOGETHER:
        before, future = waiting.pop()
        yield before, future.result()
      waiting.append((job, pool.submit(work, job)))
      if len(waiting) > 1:
        before, future = waiting.pop(0)
        yield before, future.result()
    for before, future in waiting:
      yield before, future.result()
