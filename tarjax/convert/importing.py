"""Released files -> a run directory that training, the pipeline and `convert export` start from.

Everything is checked before the first byte is written, then one tensor at a time is moved. The
folder is made under another name and renamed when it is whole.
"""

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tarjax import __version__
from tarjax.config import write_json
from tarjax.convert.formats import Sha256, check_sums, give_back
from tarjax.convert.kinds import Found, load_kind, recognise
from tarjax.convert.plan import Plan, plan_import, total
from tarjax.convert.rules import ConversionError
from tarjax.convert.store import TreeWriter, ahead, bits
from tarjax.convert.tensors import KINDS as WEIGHTS
from tarjax.convert.tensors import Source, read_json

PLACES = {
  "params": "checkpoints/0/params",
  "unused": "checkpoints/0/unused",
  "frozen": "frozen",
}
ORIGINAL = "original"  # config, tokenizer and all else that came beside the weights, as it came
SPARE = 1 << 20  # bytes of the disk that names and metadata take


def import_source(source: Source, to: Path, given: Mapping[str, Any]) -> tuple[Found, Plan]:
  """Writes the run directory `to`.

  Args:
    source: the files.
    to: must not exist, or be empty.
    given: what the files do not say themselves, under the original's names.

  Raises:
    ConversionError: files that no kind recognises or that do not fit, with every name; a place
      that is taken, or too small.
  """
  found, plan = examine(source, given)
  with fresh(to, total(plan.arrays.values())) as partial:
    write_run(source, found, plan, partial)
  return found, plan


def examine(source: Source, given: Mapping[str, Any]) -> tuple[Found, Plan]:
  """What a source is and where its tensors go; raises a ConversionError for all that is wrong."""
  found = recognise(source, given)
  plan = plan_import(found.table, source.tensors)
  for file in source.digests:
    check_sums(file)
  load_kind(found.kind).check(source, found)
  return found, plan


def write_run(source: Source, found: Found, plan: Plan, partial: Path) -> None:
  """Makes the folder `partial`, which holds a whole run at the end."""
  partial.mkdir()
  write_trees(source, plan, partial)
  files = {file.name: digest() for file, digest in source.digests.items()}
  files |= copy_around(source, partial / ORIGINAL)
  record = {
    "kind": found.kind,
    "source": source.name,
    "revision": source.revision,
    "files": files,
    "layout": found.layout,
  }
  finish(partial, found.config, record)


@contextlib.contextmanager
def fresh(to: Path, size: int) -> Iterator[Path]:
  """A path beside `to` for a file or a folder, which becomes `to` at the end, or vanishes.

  Raises:
    ConversionError: `to` is taken, or its disk is full.
  """
  to = to.absolute()
  if to.exists() and (not to.is_dir() or any(to.iterdir())):
    raise ConversionError(f"{to} exists already; remove it or choose another name")
  to.parent.mkdir(parents=True, exist_ok=True)
  partial = to.with_name(f".{to.name}.partial")
  remove(partial)
  free = shutil.disk_usage(to.parent).free
  if size + SPARE > free:
    raise ConversionError(
      f"{to} needs {size / 1e9:.2f} GB and its disk has {max(free, 0) / 1e9:.2f} GB left"
    )
  try:
    yield partial
    partial.replace(to)
  except OSError as e:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
      raise ConversionError(f"the disk of {to} is full; what was written is removed") from e
    if e.errno == errno.EFBIG:
      raise ConversionError(f"{to} is too large a file for its disk or for ulimit -f") from e
    raise
  except ValueError as e:  # tensorstore's and numpy's; ConversionError is one
    if "No space left" in str(e):
      raise ConversionError(f"the disk of {to} is full; what was written is removed") from e
    raise
  finally:
    remove(partial)


def remove(path: Path) -> None:
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def write_trees(source: Source, plan: Plan, partial: Path) -> None:
  """Moves every tensor, in the order of the files."""
  trees: dict[str, dict[str, Any]] = {}
  for (tree, target), array in plan.arrays.items():
    trees.setdefault(tree, {})[target] = array
  writers = {tree: TreeWriter(partial / PLACES[tree], a) for tree, a in trees.items()}
  size = {name: total([tensor]) for name, tensor in source.tensors.items()}
  try:
    read = ahead(plan.moves, lambda name: source.tensors[name].read(), lambda name: size[name])
    for name, tensor in read:
      raw, dtype = bits(tensor), tensor.dtype
      for move in plan.moves[name]:
        piece = raw if move.start is None else raw[move.start : move.stop]
        home = move.home
        writers[home.tree].write(home.target, home.layer, move.fn.there(piece).view(dtype))
      for writer in writers.values():
        writer.wait()
      if source.tensors[name].mapped:
        give_back(tensor)
    for writer in writers.values():
      writer.finish()
  finally:
    for writer in writers.values():
      writer.close()


def copy_around(source: Source, to: Path) -> dict[str, str]:
  """Copies what lies beside the weights of a folder; returns {name: sha256}."""
  if not source.path.is_dir():
    return {}
  files = [
    f
    for f in sorted(source.path.iterdir())
    if f.is_file() and f.suffix not in WEIGHTS and not f.name.startswith(".")
  ]
  to.mkdir()
  for file in files:
    shutil.copyfile(file, to / file.name)
  return {file.name: Sha256(file)() for file in files}


def finish(partial: Path, config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
  """What makes a folder a run: config.json; and where it came from: provenance.json."""
  text = json.dumps({"tarjax": __version__, **record}, indent=2)
  (partial / "provenance.json").write_text(text + "\n")
  write_json(partial / "config.json", {"config": dict(config)})


def read_provenance(run: Path) -> dict[str, Any]:
  """The record of an import, or {} for a run that was trained.

  Raises:
    ConversionError: a damaged one.
  """
  record = read_json(run, "provenance.json")
  parts = {"files": dict, "layout": dict, "made": list}
  for name, kind in parts.items():
    if not isinstance(record.get(name, kind()), kind):
      raise ConversionError(f"{run / 'provenance.json'} is damaged: {name} is {record[name]!r}")
  return record
