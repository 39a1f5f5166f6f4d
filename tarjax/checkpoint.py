"""Checkpoints: what another run left, and a model filled from it; `saving` writes them.

A run directory holds config.json, checkpoints/<step>/{params, opt, meta} and frozen/. Orbax
writes in the background and renames a finished step into place, so a directory whose name is a
number is whole, whenever the process was killed.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict

from tarjax.config import UserError
from tarjax.convert.rules import ConversionError, flatten, unflatten
from tarjax.convert.store import TreeReader

Tree = dict[str, Any]

logging.set_verbosity(logging.FATAL)  # Orbax warns of what we want, and logs what it also raises


def abstract(tree, shardings):
  """Trees of anything with shape and dtype, and of shardings -> tree of ShapeDtypeStruct."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
  )


def save_frozen(workdir: Path, frozen) -> None:
  """Writes the frozen networks of a run once, before its first step."""
  if jax.tree.leaves(frozen):
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(workdir / "frozen", frozen, force=True)


def restore_frozen(workdir: Path, frozen):
  """Abstract frozen tree with shardings -> arrays."""
  if not jax.tree.leaves(frozen):
    return frozen
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(workdir / "frozen", frozen)


def parse_spec(spec: str) -> tuple[str, int | None, str]:
  """ "DIR[@STEP][:sub/tree]" -> (DIR, STEP or None, "sub/tree" or "")."""
  found = re.fullmatch(r"(.+?)(?:@(\d+))?(?::([^/:][^:]*))?", spec)
  if not found:
    raise UserError(f"{spec!r} is not a checkpoint: write DIR[@STEP][:sub/tree]")
  return found[1], int(found[2]) if found[2] else None, (found[3] or "").strip("/")


class Stored:
  """An array in a checkpoint that is read when it is used: numpy makes an array of it, and a slice
  is one too. What is not asked for is not read."""

  def __init__(self, store: Any):
    self.store = store
    self.shape, self.dtype = tuple(store.shape), np.dtype(store.dtype.numpy_dtype)

  def __getitem__(self, part) -> "Stored":
    cut = self.store[part]
    return Stored(cut.translate_to[0] if cut.rank else cut)

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    del copy  # it is one
    return np.asarray(self.store.read().result(), dtype)


def open_tree(spec: str, relative_to: str | Path = ".", *, frozen: bool = False) -> Any:
  """Parameters that another run saved, as a tree of `Stored` arrays.

  Args:
    spec: "DIR[@STEP][:sub/tree]"; without STEP the last complete one.
    relative_to: the directory that a relative DIR starts from, usually a workdir.
    frozen: open the run's frozen networks instead of its params.

  Raises:
    UserError: no such run, step or subtree, named.
  """
  name, step, sub = parse_spec(spec)
  run = Path(relative_to, name).resolve()
  if frozen:
    path = run / "frozen"
  else:
    folder = run / "checkpoints"
    steps = sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []
    if not steps or step not in (None, *steps):
      there = f"it has steps {steps}" if steps else "it has no complete checkpoint"
      raise UserError(f"checkpoint {spec!r} cannot be read from {run}: {there}")
    path = folder / str(steps[-1] if step is None else step) / "params"
  if not path.is_dir():
    raise UserError(f"checkpoint {spec!r} cannot be read: {path} does not exist")
  try:
    stores = TreeReader(path).stores
  except ConversionError as e:
    raise UserError(f"checkpoint {spec!r} cannot be read: {e}") from e
  tree: Any = unflatten({name: Stored(store) for name, store in stores.items()})
  for part in sub.split("/") if sub else []:
    if not isinstance(tree, dict) or part not in tree:
      there = sorted(tree) if isinstance(tree, dict) else "a single array"
      raise UserError(f"checkpoint {spec!r} has no {part!r}: there is {there}")
    tree = tree[part]
  return tree


def load(spec: str, relative_to: str | Path = ".", *, frozen: bool = False) -> Tree:
  """What `open_tree` opens, read as a whole: a tree of numpy arrays."""
  return jax.tree.map(np.asarray, open_tree(spec, relative_to, frozen=frozen))


def load_frozen(run: str | Path) -> Tree:
  """The frozen networks of a run, as a tree of numpy arrays."""
  return load(str(run), frozen=True)


def read_config(run: str | Path) -> Any:
  """The ConfigDict of a run; lists come back as tuples and keys that are numbers as int.

  Raises:
    UserError: the directory holds no config.json, or a damaged one.
  """
  path = Path(run) / "config.json"
  if not path.is_file():
    raise UserError(f"{run} is not a run: it has no config.json")

  def back(value):
    if isinstance(value, dict):
      return {int(k) if k.isdigit() else k: back(v) for k, v in value.items()}
    return tuple(back(v) for v in value) if isinstance(value, list) else value

  try:
    return ConfigDict(back(json.loads(path.read_text())["config"]))
  except KeyError as e:
    raise UserError(f"{run} is not a run: its config.json has no 'config'") from e
  except (ValueError, TypeError, RecursionError) as e:
    raise UserError(f"{path} is damaged: {type(e).__name__}: {e}") from e


def fill(tree: Tree, specs: dict[str, str], dont_load, read, prefix: str = "") -> Tree:
  """Partial initialization, checked on both sides.

  Args:
    tree: random parameters, of which only shapes are read.
    specs: destination subtree ("" is the whole) -> checkpoint spec.
    dont_load: names of parameters or subtrees that stay random (or that are left behind in the
      checkpoint); "blocks[26:]" leaves behind the layers from 26 on.
    read: `open_tree` or `load` with its directory bound.
    prefix: "frozen/" for the frozen tree: put before every name, also those in `dont_load`.

  Returns:
    The tree with all of each destination replaced, except what `dont_load` names.

  Raises:
    UserError: listing each parameter not found, left over, or of another shape.
  """
  flat, problems = flatten(tree), []
  for dest, spec in specs.items():
    dest = dest.strip("/")
    found = read(spec)
    found = found if isinstance(found, dict) else {"": found}
    new = {f"{dest}/{name}".strip("/"): array for name, array in flatten(found).items()}
    here = {name for name in flat if not dest or (name + "/").startswith(dest + "/")}
    if not here:
      problems.append(f"{prefix}{dest}: no such parameter or subtree in the model")
    for name in sorted(here | new.keys()):
      full = prefix + name
      if skipped(full, dont_load):
        continue
      if name not in new:
        problems.append(f"{full} {flat[name].shape}: not in {spec}")
      elif name not in here:
        problems.append(f"{full} {new[name].shape}: left over in {spec}")
      else:
        array, n = new[name], layers(full, dont_load)
        array = array if n is None else array[:n]
        if array.shape != flat[name].shape:
          problems.append(f"{full}: {array.shape} in {spec}, {flat[name].shape} in the model")
        flat[name] = array
  if problems:
    raise UserError("checkpoint and model disagree (config.dont_load):\n  " + "\n  ".join(problems))
  return unflatten(flat)


def skipped(name: str, dont_load) -> bool:
  """Whether `dont_load` names this parameter or a subtree around it."""
  return any((name + "/").startswith(entry.strip("/") + "/") for entry in dont_load)


def layers(name: str, dont_load) -> int | None:
  """How many leading layers of this parameter are read: n of an entry "subtree[n:]", or None."""
  for entry in dont_load:
    found = re.fullmatch(r"(.*)\[(\d+):\]", entry)
    if found and (name + "/").startswith(found[1].strip("/") + "/"):
      return int(found[2])
  return None
