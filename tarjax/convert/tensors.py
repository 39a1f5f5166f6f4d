"""Reads weight files one tensor at a time: safetensors, PyTorch pickles, NumPy archives.

A file is what its first bytes say, not what it is called. Names, shapes and dtypes are read first;
data only when a tensor is asked for. Nothing in a file is ever executed.

  source = open_source("Qwen2.5-0.5B")          # a folder or a file
  source.tensors["model.norm.weight"].shape
  source.tensors["model.norm.weight"].read()    # the only moment when data is read
"""

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tarjax.convert.formats import HEADER_LIMIT, Tensor, damage, open_npz, open_safetensors
from tarjax.convert.pickles import open_torch
from tarjax.convert.rules import ConversionError

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
SINGLES = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin")
PROTOCOLS = tuple(bytes((0x80, n)) for n in range(2, 6))  # how a pickle begins
INDEXES = tuple(f"{name}.index.json" for name in SINGLES)


class Source(NamedTuple):
  """Weight files that belong together.

  Attributes:
    path: the folder or file that was asked for.
    tensors: in the order in which the files hold them.
    digests: file -> a function that gives its sha256; cheap after its tensors were read in order.
    around: what a pickle holds beside its tensors: "name" and "args", or nothing.
    config: the folder's config.json, or {}.
    name: what the user called it.
    revision: of a hub repository.
  """

  path: Path
  tensors: dict[str, Tensor]
  digests: dict[Path, Callable[[], str]]
  around: dict[str, Any]
  config: dict[str, Any]
  name: str
  revision: str | None


def open_source(path: str | Path, name: str | None = None, revision: str | None = None) -> Source:
  """Looks into a folder or a file; `name` and `revision` are for the record.

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
  return Source(
    path, tensors, digests, around, read_json(path, "config.json"), name or str(path), revision
  )


def together(sources: Sequence[Source]) -> Source:
  """Files that were given side by side as one source, which has the place of the first.

  Raises:
    ConversionError: a tensor that two of them hold.
  """
  tensors: dict[str, Tensor] = {}
  for source in sources:
    if twice := sorted(tensors.keys() & source.tensors.keys()):
      raise ConversionError(f"{source.path}: {twice[0]} is also in {tensors[twice[0]].file}")
    tensors |= source.tensors
  digests = {file: digest for source in sources for file, digest in source.digests.items()}
  name = " ".join(source.name for source in sources)
  return sources[0]._replace(tensors=tensors, digests=digests, name=name)


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
  except (ValueError, RecursionError) as e:
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
  files = sorted(f for f in folder.iterdir() if f.suffix in KINDS and f.is_file())
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
  pickled = head[:2] in PROTOCOLS  # or the length of a safetensors header
  if head.startswith(b"PK"):
    with damage(path, "zip archive"), zipfile.ZipFile(path) as archive:
      kind = "npz" if all(n.endswith(".npy") for n in archive.namelist()) else "torch"
  elif head[8:9] == b"{" and (not pickled or int.from_bytes(head[:8], "little") <= HEADER_LIMIT):
    kind = "safetensors"
  elif pickled:
    kind = "torch"
  else:
    raise ConversionError(f"{path} is none of these: {', '.join(WHAT.values())}")
  named = KINDS.get(path.suffix, kind)
  if named != kind:
    raise ConversionError(f"{path} is {WHAT[kind]}, and by its name {WHAT[named]}")
  return kind


OPENERS: dict[str, Callable[[Path], tuple[dict[str, Tensor], Callable[[], str], dict]]] = {
  "safetensors": open_safetensors,
  "torch": open_torch,
  "npz": open_npz,
}
