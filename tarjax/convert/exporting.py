"""A run directory -> the files that the original code loads, one tensor at a time."""

import io
import itertools
import json
import math
import os
import pickle
import shutil
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import orbax.checkpoint as ocp

from tarjax import checkpoint
from tarjax.convert.formats import NAMES
from tarjax.convert.importing import ORIGINAL, fresh, read_provenance
from tarjax.convert.kinds import kind_of_task, load_kind
from tarjax.convert.plan import CONSTANT, Array, Made, Move, Table, plan_export, total
from tarjax.convert.rules import ConversionError
from tarjax.convert.store import TreeReader, ahead, bits, in_order
from tarjax.convert.tensors import read_json

SHARD = 5_000_000_000  # bytes of a safetensors file, at most; a larger tensor has its own
# fmt: off
STORAGES = {
    "float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16",
    "int64": "Long", "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte",
    "bool": "Bool",
}
# fmt: on
NO_PART = r"frozen/.*|params/discriminator/.*"  # of a network that is exported
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


class Run(NamedTuple):
  """A run directory, nothing of its weights read yet."""

  path: Path
  config: dict[str, Any]
  provenance: dict[str, Any]
  kind: str
  trees: dict[str, TreeReader]
  table: Table

  @property
  def arrays(self) -> dict[tuple[str, str], Array]:
    """(tree, name) -> shape and dtype."""
    return {(t, name): a for t, tree in self.trees.items() for name, a in tree.arrays.items()}

  @property
  def layout(self) -> dict[str, Any]:
    return self.provenance.get("layout", {})


def open_run(spec: str) -> Run:
  """ "DIR[@STEP]" -> Run, of an import or of a training.

  Raises:
    UserError: no run, or no such step.
    ConversionError: a run whose network has no checkpoint format, or a damaged one.
  """
  name, step, sub = checkpoint.parse_spec(spec)
  if sub:
    raise ConversionError(f"{spec}: give the run itself, not the part {sub!r}")
  path = Path(name)
  config, provenance = checkpoint.read_config(path).to_dict(), read_provenance(path)
  folder = path / "checkpoints"
  steps = sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []
  if not steps or step not in (None, *steps):
    there = f"it has steps {steps}" if steps else "it has no complete checkpoint"
    raise ConversionError(f"{spec} cannot be read: {there}")
  at = folder / str(steps[-1] if step is None else step)
  kind = provenance.get("kind") or kind_of_task(str(config.get("task")))
  try:
    table = load_kind(kind).table(config, provenance.get("layout", {}))
  except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as e:
    text = " ".join(str(e).split())[:200]
    raise ConversionError(
      f"{path / 'config.json'} describes no {kind}: {type(e).__name__}: {text}"
    ) from e
  places = {"params": at / "params", "unused": at / "unused", "frozen": path / "frozen"}
  if not places["params"].is_dir():
    raise ConversionError(f"{spec} is damaged: {places['params']} is missing")
  trees = {tree: TreeReader(place) for tree, place in places.items() if place.is_dir()}
  return Run(path, config, provenance, kind, trees, table)


def export_run(spec: str, to: Path, form: str | None, *, extra: bool = True) -> list[str]:
  """Writes the original's files; returns sentences that a user should know.

  Args:
    spec: "DIR[@STEP]".
    to: a folder for "hf"; for "torch" a file, or a folder for one.
    form: None is the kind's own.
    extra: keep tensors that are no part of the network, such as a Tar's `model.vision_tower.*`.

  Raises:
    ConversionError: a run that does not hold what the format needs, with every name.
  """
  run = open_run(spec)
  kind = load_kind(run.kind)
  if form not in (None, kind.FORMAT):
    raise ConversionError(f"{run.kind} checkpoints are exported as {kind.FORMAT}, not as {form}")
  table, arrays, trained = run.table, run.arrays, "layout" not in run.provenance
  if not extra:
    arrays = {k: a for k, a in arrays.items() if not k[1].startswith("verbatim/")}
  made, filled = plan_export(table, arrays, fill=trained, ignored=NO_PART)
  if kind.FORMAT == "torch":
    file = to if to.suffix in (".pth", ".pt") else to / original_name(run, kind.FILE)
    write_pickle(run, table, made, kind.around(run.config, run.layout), file)
  else:
    write_folder(run, table, made, to, kind.FILE)
  said = [f"{len(filled)} tensors that no output needs are not in the run: filled"] * bool(filled)
  alien = [name for t, name in arrays if t == "unused" and name.startswith("verbatim/")]
  if alien:
    said.append(f"{len(alien)} tensors beside the network are kept; --no-extra leaves them out")
  return said


def original_name(run: Run, default: str) -> str:
  files = [n for n in run.provenance.get("files", {}) if n.endswith((".pth", ".pt"))]
  return files[0] if len(files) == 1 else default


def pieces(run: Run, table: Table, made: Made) -> Iterator[np.ndarray]:
  """The rows of one tensor as bits in C order, move by move."""
  for move in made.moves:
    yield in_order(move.fn.back(bits(value(run, table, move, made.dtype))))


def value(run: Run, table: Table, move: Move, dtype: np.dtype) -> np.ndarray:
  """What a move starts from: an array of the run, one of its layers, or a constant."""
  home = move.home
  if home.tree != CONSTANT:
    return np.asarray(run.trees[home.tree].read(home.target, home.layer))
  shape = table.shapes[home.target][0 if home.layer is None else 1 :]
  return np.array(np.broadcast_to(table.constants.get(home.target, 0), shape), dtype)


def read_ahead(run: Run, table: Table, made: Mapping[str, Made]):
  """Yields (name, [rows as bits]) of every tensor."""

  def work(name: str) -> list[np.ndarray]:
    return list(pieces(run, table, made[name]))

  return ahead(made, work, lambda name: total([made[name]]))


# --- Hugging Face folders -------------------------------------------------------------------------


def write_folder(run: Run, table: Table, made: Mapping[str, Made], to: Path, file: str) -> None:
  """Safetensors, an index if there are several, config, tokenizer and what else came along."""
  with fresh(to, total(made.values())) as partial:
    partial.mkdir()
    shards = cut_shards(made)
    total_size = total(made.values())
    stem, count = file.removesuffix(".safetensors"), len(shards)
    names = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    names = names if count > 1 else [file]
    for name, shard in zip(names, shards, strict=True):
      write_safetensors(run, table, {n: made[n] for n in shard}, partial / name)
    if len(shards) > 1:
      where = {n: name for name, shard in zip(names, shards, strict=True) for n in shard}
      index = {"metadata": {"total_size": total_size}, "weight_map": where}
      (partial / f"{file}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    write_around(run, next(iter(made.values())).dtype, partial)


def cut_shards(made: Mapping[str, Made]) -> list[list[str]]:
  """Tensors in runs of at most SHARD bytes."""
  shards, size = [[]], 0
  for name, tensor in made.items():
    if shards[-1] and size + total([tensor]) > SHARD:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += total([tensor])
  return shards


def write_safetensors(run: Run, table: Table, made: Mapping[str, Made], path: Path) -> None:
  ends = list(itertools.accumulate((total([m]) for m in made.values()), initial=0))
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  for (name, m), start, stop in zip(made.items(), ends, ends[1:], strict=False):
    offsets = [start, stop]
    header[name] = {"dtype": NAMES[m.dtype], "shape": list(m.shape), "data_offsets": offsets}
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with open(path, "wb") as f:
    f.write(len(text).to_bytes(8, "little") + text)
    for _, rows in read_ahead(run, table, made):
      for part in rows:
        f.write(part.reshape(-1).view(np.uint8).data)


def write_around(run: Run, dtype: np.dtype, to: Path) -> None:
  """config.json and all that came beside the weights; of a trained run, what it started from."""
  origin = find_origin(run.path)
  before = read_json(origin, "config.json") if origin else {}
  if origin:
    for file in sorted(origin.iterdir()):
      if not file.name.endswith(".index.json"):
        shutil.copyfile(file, to / file.name)
  if (
    "layout" in run.provenance and (to / "config.json").is_file() and not run.layout.get("changed")
  ):
    return
  path = to / "config.json"
  after = before | load_kind(run.kind).around(run.config, run.layout)
  if load_kind(run.kind).FORMAT == "hf":
    after["torch_dtype"] = dtype.name
    after.pop("dtype", None)
  path.write_text(json.dumps(after, indent=2) + "\n")
  tokenizer = run.path / (run.config.get("data") or {}).get("tokenizer", "tokenizer")
  for name in TOKENIZER:
    if (tokenizer / name).is_file():
      shutil.copyfile(tokenizer / name, to / name)


def find_origin(path: Path, depth: int = 8) -> Path | None:
  """The folder of what came beside the weights, of a run or of the run it started from."""
  if (path / ORIGINAL).is_dir():
    return path / ORIGINAL
  if depth == 0 or not (path / "config.json").is_file():
    return None
  config = checkpoint.read_config(path).to_dict()
  start = (config.get("widen") or {}).get("llm") or (config.get("init") or {}).get("")
  start = start or config.get("sana_from")
  if not start:
    return None
  return find_origin(Path(os.path.normpath(path / checkpoint.parse_spec(start)[0])), depth - 1)


# --- PyTorch pickles ------------------------------------------------------------------------------


def write_pickle(run: Run, table: Table, made: Mapping[str, Made], around, file: Path) -> None:
  """{"model": {"name", "args", "sd"}}, or {"model": state dict} when nothing stands around it.

  Raises:
    ConversionError: torch is missing, or a dtype that it lacks.
  """
  try:
    import torch
  except ImportError as e:
    raise ConversionError(f"{file} is a PyTorch file; writing it needs torch, install it") from e
  alien = sorted({m.dtype.name for m in made.values()} - STORAGES.keys())
  if alien:
    raise ConversionError(f"{file}: PyTorch files hold no {', '.join(alien)}")
  with fresh(file, total(made.values())) as partial:
    try:
      with open(partial, "wb") as stream:
        sink: Any = Sink(stream)
        writer: Any = torch._C.PyTorchFileWriter(sink)
        data = pickled(made, around)
        writer.write_record("data.pkl", data, len(data))
        writer.write_record("byteorder", sys.byteorder, len(sys.byteorder))
        for number, (_, rows) in enumerate(read_ahead(run, table, made)):
          array = rows[0] if len(rows) == 1 else np.concatenate(rows)
          storage = torch.from_numpy(array.reshape(-1).view(np.uint8)).untyped_storage()
          writer.write_record(f"data/{number}", storage, storage.nbytes())
          sink.check()
        writer.write_end_of_file()
        sink.check()
    except RuntimeError as e:
      raise ConversionError(f"{file} cannot be written: {' '.join(str(e).split())[:200]}") from e


class Sink:
  """A file for torch's writer, which would end the process if a write failed: errors wait."""

  def __init__(self, file: BinaryIO):
    self.file, self.error = file, None

  def write(self, data) -> int:
    try:
      if self.error is None:
        self.file.write(data)
    except OSError as e:
      self.error = e
    return len(data)

  def check(self) -> None:
    if self.error is not None:
      raise self.error


class Stored:
  """Stands for a tensor while a pickle is written; its data follow as record `number`."""

  def __init__(self, number: int, made: Made):
    self.number, self.made = number, made

  def __reduce__(self):
    from torch._utils import _rebuild_tensor_v2

    shape = self.made.shape
    storage = Storage(str(self.number), self.made.dtype.name, math.prod(shape))
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return _rebuild_tensor_v2, (storage, 0, shape, tuple(strides), False, OrderedDict())


class Storage(NamedTuple):
  """Stands for a tensor's storage."""

  key: str
  dtype: str
  size: int


def pickled(made: Mapping[str, Made], around: Mapping[str, Any]) -> bytes:
  """The pickle of a file in torch's format, without its data."""
  import torch

  class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
      if not isinstance(obj, Storage):
        return None
      kind = getattr(torch, STORAGES[obj.dtype] + "Storage")
      return "storage", kind, obj.key, "cpu", obj.size

  tensors = {name: Stored(number, m) for number, (name, m) in enumerate(made.items())}
  buffer = io.BytesIO()
  model = {**around, "sd": tensors} if around else tensors
  Pickler(buffer, protocol=2).dump({"model": model})
  return buffer.getvalue()
