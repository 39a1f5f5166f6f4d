"""Reads weight files one tensor at a time: safetensors, PyTorch pickles, NumPy archives.

A file is what its first bytes say, not what it is called. Names, shapes and dtypes are read first;
data only when a tensor is asked for. Nothing in a file is ever executed.

  source = open_source("Qwen2.5-0.5B")          # a folder or a file
  source.tensors["model.norm.weight"].shape
  source.tensors["model.norm.weight"].read()    # the only moment when data is read
"""

import contextlib
import ctypes
import hashlib
import json
import math
import mmap
import re
import sys
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
# fmt: off
KINDS = {
    ".safetensors": "safetensors", ".npz": "npz", ".pt": "torch", ".pth": "torch", ".bin": "torch",
}
# fmt: on
WHAT = {
  "safetensors": "a safetensors file",
  "npz": "a NumPy archive",
  "torch": "a PyTorch pickle",
}
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")


class Tensor(NamedTuple):
  """A tensor in a file: `read()` gives it as a fresh numpy array."""

  shape: tuple[int, ...]
  dtype: np.dtype
  file: Path
  read: Callable[[], np.ndarray]


class Source(NamedTuple):
  """Weight files that belong together.

  Attributes:
    path: the folder or file that was asked for.
    tensors: in the order in which the files hold them.
    digests: file -> a function that gives its sha256; cheap after its tensors were read in order.
    around: what a pickle holds beside its tensors: "name" and "args", or nothing.
    config: the folder's config.json, or {}.
    revision: of a hub repository.
  """

  path: Path
  tensors: dict[str, Tensor]
  digests: dict[Path, Callable[[], str]]
  around: dict[str, Any]
  config: dict[str, Any]
  revision: str | None = None


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
  except (zipfile.BadZipFile, NotImplementedError) as e:
    raise ConversionError(f"{path} is a damaged {what}: {e}") from e


def open_source(path: str | Path, revision: str | None = None) -> Source:
  """Looks into a folder or a file.

  Raises:
    ConversionError: nothing there, or a file that is damaged, of another kind than its name says,
      or not only tensors.
  """
  path = Path(path)
  if path.is_dir():
    files, listed = weight_files(path)
  elif path.is_file():
    files, listed = [path], None
  else:
    raise ConversionError(f"{path} does not exist")
  tensors: dict[str, Tensor] = {}
  digests, around = {}, {}
  for file in files:
    found, digests[file], around = OPENERS[kind_of(file)](file)
    if twice := sorted(tensors.keys() & found.keys()):
      raise ConversionError(f"{file}: {twice[0]} is also in {tensors[twice[0]].file}")
    tensors |= found
  if listed is not None:
    check_index(path, listed, tensors)
  if not tensors:
    raise ConversionError(f"{path} holds no tensors")
  return Source(path, tensors, digests, around, read_json(path, "config.json"), revision)


def read_json(folder: Path, name: str) -> dict[str, Any]:
  """A JSON file of a folder, or {} if it is not there.

  Raises:
    ConversionError: a file that is not a JSON object.
  """
  path = folder / name
  if not path.is_file():
    return {}
  try:
    value = json.loads(path.read_text())
  except (ValueError, UnicodeDecodeError) as e:
    raise ConversionError(f"{path} is not JSON: {e}") from e
  if not isinstance(value, dict):
    raise ConversionError(f"{path} is not a JSON object")
  return value


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
  """A folder -> (its weight files, the index's {tensor: file name} if it has one).

  Raises:
    ConversionError: no weights, several of which none is the one, or a shard that is not there.
  """
  for name in INDEXES:
    if index := read_json(folder, name):
      listed = index.get("weight_map")
      if not isinstance(listed, dict) or not all(isinstance(f, str) for f in listed.values()):
        raise ConversionError(f"{folder / name} has no weight_map")
      names = sorted(set(listed.values()))
      lost = [f for f in names if Path(f).name != f or not (folder / f).is_file()]
      if lost:
        raise ConversionError(f"{folder} lacks {', '.join(lost)}, named in {name}")
      return [folder / f for f in names], listed
  for name in SINGLES:
    if (folder / name).is_file():
      return [folder / name], None
  files = sorted(f for f in folder.iterdir() if f.suffix in KINDS)
  if len(files) == 1:
    return files, None
  there = ", ".join(f.name for f in files) or "no weights"
  raise ConversionError(f"{folder} has {there}; it needs one weight file, or an index of several")


def check_index(folder: Path, listed: dict[str, str], tensors: dict[str, Tensor]) -> None:
  """Raises a ConversionError unless every tensor is in the file that the index says."""
  problems = [f"{n}: in no file, {listed[n]} in the index" for n in listed.keys() - tensors.keys()]
  for name, tensor in tensors.items():
    if listed.get(name) != tensor.file.name:
      there = listed.get(name, "not at all")
      problems.append(f"{name}: in {tensor.file.name}, {there} in the index")
  if problems:
    text = "\n  ".join(sorted(problems))
    raise ConversionError(f"the files of {folder} and its index disagree:\n  {text}")


def kind_of(path: Path) -> str:
  """ "safetensors", "torch" or "npz", from the first bytes.

  Raises:
    ConversionError: something else, or not what the file's name says.
  """
  with open(path, "rb") as f:
    head = f.read(512)
  if not head:
    raise ConversionError(f"{path} is empty")
  if head.startswith(b"version https://git-lfs"):
    raise ConversionError(f"{path} is a Git LFS pointer, not the weights themselves")
  if head.startswith(b"PK"):
    with damage(path, "zip archive"), zipfile.ZipFile(path) as archive:
      kind = "npz" if all(n.endswith(".npy") for n in archive.namelist()) else "torch"
  elif head[0] == 0x80 and head[1] in range(2, 6):
    kind = "torch"
  elif head[8:9] == b"{":
    kind = "safetensors"
  else:
    raise ConversionError(f"{path} is none of these: {', '.join(WHAT.values())}")
  named = KINDS.get(path.suffix, kind)
  if named != kind:
    raise ConversionError(f"{path} is {WHAT[kind]}, and by its name {WHAT[named]}")
  return kind


def check_sums(path: Path) -> None:
  """Raises a ConversionError for an archive whose content is not what its checksums say."""
  if zipfile.is_zipfile(path):
    with damage(path, "archive"), zipfile.ZipFile(path) as archive:
      if broken := archive.testzip():
        raise ConversionError(f"{path} is damaged: the checksum of {broken} is wrong")


# --- safetensors ----------------------------------------------------------------------------------


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
  """The header's tensors, in the order of their data."""
  size = path.stat().st_size
  with open(path, "rb") as f:
    prefix = f.read(8)
    length = int.from_bytes(prefix, "little")
    if length > min(size - 8, HEADER_LIMIT):
      raise ConversionError(f"{path} is truncated or damaged: its header does not fit into it")
    text = f.read(length)
  digest, first = Sha256(path), 8 + length
  digest.saw(0, prefix + text)
  with damage(path, "safetensors file"):
    header = json.loads(text, object_pairs_hook=unique)
    header.pop("__metadata__", None)
    spans = {name: span(name, **entry) for name, entry in header.items()}
  tensors, end = {}, 0
  for name, (dtype, shape, start, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
    if start != end:
      raise ConversionError(f"{path} is a damaged safetensors file: {name} does not begin at {end}")
    end = stop
    tensors[name] = Tensor(shape, dtype, path, reader(path, digest, first + start, dtype, shape))
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
  if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop)):
    raise ValueError(f"{name} has a shape or an offset that is no number")
  if stop - start != math.prod(shape) * kind.itemsize:
    raise ValueError(f"{name} {tuple(shape)} of {dtype} does not fill its {stop - start} bytes")
  return kind, tuple(shape), start, stop


def reader(path: Path, digest: Sha256, start: int, dtype: np.dtype, shape: tuple[int, ...]):
  def read() -> np.ndarray:
    buffer = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    with open(path, "rb", buffering=0) as f:
      f.seek(start)
      got = 0
      while got < len(buffer):
        count = f.readinto(buffer[got : got + (1 << 30)].data)
        if not count:
          raise ConversionError(f"{path} became shorter while it was read")
        got += count
    digest.saw(start, buffer)
    return buffer.view(dtype).reshape(shape)

  return read


# --- PyTorch pickles ------------------------------------------------------------------------------


def open_torch(path: Path):
  """A pickle of tensors, mapped into memory; needs torch.

  It is {"model": {"name", "args", "sd"}}, {"model": state dict} or a bare state dict.
  """
  file = load_pickle(path)
  model = file.get("model", file) if isinstance(file, dict) else None
  around = {}
  if isinstance(model, dict) and isinstance(model.get("sd"), dict):
    around = {k: v for k, v in model.items() if k != "sd"}
    model = model["sd"]
  if not isinstance(model, dict) or not model:
    raise ConversionError(f"{path} holds no state dict: neither model.sd nor model nor itself")
  try:
    json.dumps(around)
  except (TypeError, ValueError) as e:
    raise ConversionError(f"{path}: beside its tensors it holds more than plain values: {e}") from e
  tensors = {}
  for name, value in model.items():
    if not hasattr(value, "untyped_storage") or str(value.layout) != "torch.strided":
      raise ConversionError(f"{path}: {name} is no plain tensor but a {type(value).__name__}")
    array = numpy_view(path, name, value)
    tensors[str(name)] = Tensor(array.shape, array.dtype, path, lambda a=array: copied(a))
  return tensors, Sha256(path), around


def load_pickle(path: Path) -> Any:
  """What a pickle holds, if it is tensors and plain values.

  Raises:
    ConversionError: anything else in it, by name, or a damaged file.
  """
  try:
    import torch
  except ImportError as e:
    raise ConversionError(f"{path} is a PyTorch file; reading it needs torch, install it") from e
  import pickle

  zipped = zipfile.is_zipfile(path)
  try:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
  except pickle.UnpicklingError as e:
    found = re.search(r"(?:GLOBAL|Unsupported class)\s+([\w.]+)", str(e))
    if found:
      raise ConversionError(
        f"{path} is refused: it is more than tensors, it wants {found[1]}"
      ) from e
    raise ConversionError(f"{path} is refused: it is damaged, or more than tensors") from e
  except (RuntimeError, EOFError, ValueError, TypeError, KeyError, IndexError, OSError) as e:
    text = " ".join(str(e).split())[:200]
    raise ConversionError(f"{path} is a damaged PyTorch file: {text}") from e
  except (AttributeError, AssertionError, OverflowError, zipfile.BadZipFile) as e:
    raise ConversionError(f"{path} is a damaged PyTorch file: {type(e).__name__}: {e}") from e


def numpy_view(path: Path, name: str, tensor: Any) -> np.ndarray:
  """A torch tensor as numpy, sharing its memory; bfloat16 and 8-bit floats stay what they are."""
  import torch

  kinds = {
    torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.int8, ml_dtypes.float8_e4m3fn),
    torch.float8_e5m2: (torch.int8, ml_dtypes.float8_e5m2),
  }
  with damage(path, f"PyTorch file at {name}"):
    tensor = tensor.detach().contiguous()
    if tensor.dtype in kinds:
      carrier, dtype = kinds[tensor.dtype]
      return tensor.view(carrier).numpy().view(dtype)
    return tensor.numpy()


def copied(mapped: np.ndarray) -> np.ndarray:
  """A copy; the pages of the mapped file are given back, or a whole file would stay in memory."""
  array = mapped.copy()
  if sys.platform == "linux":
    page = mmap.PAGESIZE
    first = -(-mapped.ctypes.data // page) * page
    length = mapped.ctypes.data + mapped.nbytes - first
    if length >= page:
      libc = ctypes.CDLL(None)
      libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length // page * page), 4)  # DONTNEED
  return array


# --- NumPy archives -------------------------------------------------------------------------------


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


OPENERS: dict[str, Callable[[Path], tuple[dict[str, Tensor], Callable[[], str], dict]]] = {
  "safetensors": open_safetensors,
  "torch": open_torch,
  "npz": open_npz,
}
