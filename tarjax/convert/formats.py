"""Weight files of two formats, read one tensor at a time: safetensors and NumPy archives.

An opener reads names, shapes and dtypes, and returns (tensors, sha256 of the file, {}).
"""

import contextlib
import ctypes
import hashlib
import json
import math
import mmap
import sys
import tokenize
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tarjax.convert.rules import ConversionError

# fmt: off
DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "BOOL": np.bool_,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
}
# fmt: on
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library
BLOCK = 1 << 24
DONTNEED = 4  # of madvise


class Tensor(NamedTuple):
  """A tensor in a file: `read()` gives it as a numpy array.

  When `mapped`, that is a part of the file, which `give_back` takes out of memory again.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  file: Path
  read: Callable[[], np.ndarray]
  mapped: bool = False


@contextlib.contextmanager
def damage(path: Path, what: str) -> Iterator[None]:
  """Turns whatever a library says about a broken file into one sentence that names it."""
  try:
    yield
  except ConversionError:
    raise
  except (ValueError, TypeError, KeyError, IndexError, EOFError, RuntimeError) as e:
    text = " ".join(str(e).split())[:200]
    raise ConversionError(f"{path} is a damaged {what}: {text}") from e
  except (zipfile.BadZipFile, NotImplementedError, SyntaxError, tokenize.TokenError) as e:
    raise ConversionError(f"{path} is a damaged {what}: {e}") from e


class Sha256:
  """Of a file; blocks that are read in its order anyway are not read again."""

  def __init__(self, path: Path):
    self.path, self.done, self.sha = path, 0, hashlib.sha256()

  def saw(self, start: int, data) -> None:
    if start == self.done:
      self.sha.update(data)
      self.done += len(data)

  def __call__(self) -> str:
    with open(self.path, "rb") as f:
      f.seek(self.done)
      while block := f.read(BLOCK):
        self.saw(self.done, block)
    return self.sha.hexdigest()


def open_safetensors(path: Path):
  """The header's tensors, in the order of their data.

  The file is mapped, since fresh memory to read it into would cost more time than the reading.
  """
  size = path.stat().st_size
  with open(path, "rb") as f:
    prefix = f.read(8)
    length = int.from_bytes(prefix, "little")
    if length > min(size - 8, HEADER_LIMIT):
      raise ConversionError(f"{path} is truncated or damaged: its header does not fit into it")
    text = f.read(length)
    mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
  digest, first = Sha256(path), 8 + length
  digest.saw(0, prefix + text)
  with damage(path, "safetensors file"):
    header = json.loads(text, object_pairs_hook=unique)
    header.pop("__metadata__", None)
    spans = {name: span(name, **entry) for name, entry in header.items()}
  tensors, end, file = {}, 0, np.frombuffer(mapped, np.uint8)
  for name, (dtype, shape, start, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
    if start != end:
      raise ConversionError(f"{path} is a damaged safetensors file: {name} does not begin at {end}")
    end = stop
    read = reader(file, digest, first + start, dtype, shape)
    tensors[name] = Tensor(shape, dtype, path, read, mapped=True)
  if first + end != size:
    what = "truncated" if first + end > size else "damaged"
    raise ConversionError(f"{path} is {what}: it has {size} bytes and describes {first + end}")
  return tensors, digest, {}


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  names = [name for name, _ in pairs]
  if len(set(names)) != len(names):
    raise ValueError(f"{next(n for n in names if names.count(n) > 1)} is there twice")
  return dict(pairs)


def span(name: str, *, dtype: str, shape: list[int], data_offsets: list[int]):
  """One entry of a header -> (dtype, shape, start, stop)."""
  if dtype not in DTYPES:
    raise ValueError(f"{name} has the unknown dtype {dtype}")
  kind, (start, stop) = np.dtype(DTYPES[dtype]), data_offsets
  if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
    raise ValueError(f"{name} has a shape or an offset that is no number")
  if stop - start != math.prod(shape) * kind.itemsize:
    raise ValueError(f"{name} {tuple(shape)} of {dtype} does not fill its {stop - start} bytes")
  return kind, tuple(shape), start, stop


def reader(file: np.ndarray, digest: Sha256, start: int, dtype: np.dtype, shape: tuple[int, ...]):
  def read() -> np.ndarray:
    data = file[start : start + math.prod(shape) * dtype.itemsize]
    digest.saw(start, data)
    return data.view(dtype).reshape(shape)

  return read


def give_back(mapped: np.ndarray) -> None:
  """Takes the pages of a mapped file out of memory; they are read again when they are needed.

  Only for memory that is a file: any other would be lost.
  """
  if sys.platform != "linux":
    return
  first = -(-mapped.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
  length = (mapped.ctypes.data + mapped.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
  if length > 0:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), DONTNEED)


def open_npz(path: Path):
  """An archive of arrays, such as big_vision's; its 2-byte void arrays are bfloat16."""
  tensors = {}
  with damage(path, "NumPy archive"), zipfile.ZipFile(path) as archive:
    for member in archive.namelist():
      with archive.open(member) as f:
        version = np.lib.format.read_magic(f)
        read_header = {
          (1, 0): np.lib.format.read_array_header_1_0,
          (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(f)
      if dtype.hasobject:
        raise ConversionError(f"{path}: {member} holds Python objects, not numbers")
      kind = np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype
      read = member_reader(path, member, kind)
      tensors[member.removesuffix(".npy")] = Tensor(shape, kind, path, read)
  return tensors, Sha256(path), {}


def member_reader(path: Path, member: str, dtype: np.dtype):
  def read() -> np.ndarray:
    with damage(path, "NumPy archive"), zipfile.ZipFile(path) as archive:
      with archive.open(member) as f:
        array = np.lib.format.read_array(f, allow_pickle=False)
    return np.ascontiguousarray(array.view(dtype) if array.dtype.kind == "V" else array)

  return read


def check_sums(path: Path) -> None:
  """Raises a ConversionError for an archive whose content is not what its checksums say."""
  if zipfile.is_zipfile(path):
    with damage(path, "archive"), zipfile.ZipFile(path) as archive:
      if broken := archive.testzip():
        raise ConversionError(f"{path} is damaged: the checksum of {broken} is wrong")
