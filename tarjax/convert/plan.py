"""What a conversion will do, worked out from names, shapes and dtypes alone.

A table says what a checkpoint must hold; a plan says which rows of which tensor go where. A plan
exists only if everything fits, so nothing is written before that is known. Both directions use the
same table:

  plan = plan_import(table, {name: tensor.shape and .dtype})   # tensors in, arrays out
  made = plan_export(table, {(tree, target): array})           # arrays in, tensors out
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tarjax.convert.rules import ConversionError, Fn, Rule, expand, locate, same

FLOATS = tuple(np.dtype(d) for d in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16))
NEVER = r"(?!)"
CONSTANT = "constant"  # the tree of parameters that a run lacks
VERBATIM = "verbatim/"  # where tensors that belong to no parameter are kept, in the tree "unused"


class Cut(NamedTuple):
  """A tensor that the rules know as several, cut along its rows.

  `parts` are their names, with {0}, {1}, .. for the groups of `pattern`; `shares` the relative
  numbers of rows.
  """

  pattern: str
  parts: tuple[str, ...]
  shares: tuple[int, ...]

  def pieces(self, name: str, rows: int) -> list[tuple[str, int, int]] | None:
    """[(piece, first row, row after the last)], or None if `name` is another tensor's.

    Raises:
      ConversionError: rows that the shares do not divide.
    """
    match = re.fullmatch(self.pattern, name)
    if not match:
      return None
    unit, rest = divmod(rows, sum(self.shares))
    if rest:
      raise ConversionError(f"{name}: {rows} rows do not divide by {sum(self.shares)}")
    stops = [int(s) * unit for s in np.cumsum(self.shares)]
    names = [part.format(*match.groups()) for part in self.parts]
    return list(zip(names, [0, *stops[:-1]], stops, strict=True))

  def whole(self, piece: str) -> tuple[str, int] | None:
    """A piece's name -> (name of the tensor it is cut from, its number), or None."""
    form = re.sub(r"\\([.])", r"\1", self.pattern)
    for number, part in enumerate(self.parts):
      groups = iter(re.findall(r"\([^()]*\)", self.pattern))
      pattern = re.sub(r"\\\{\d+\\\}", lambda _, g=groups: next(g), re.escape(part))
      if match := re.fullmatch(pattern, piece):
        found = iter(match.groups())
        return re.sub(r"\([^()]*\)", lambda _, f=found: next(f), form), number
    return None


def cut_tensors(cuts: Sequence[Cut], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Whole tensors -> the pieces that the rules know; views of the same memory."""
  cut = {}
  for name, tensor in tensors.items():
    for piece, start, stop in pieces_of(cuts, name, tensor.shape):
      cut[piece] = tensor if start is None else tensor[start:stop]
  return cut


def fuse_tensors(cuts: Sequence[Cut], pieces: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The inverse of `cut_tensors`."""
  fused: dict[str, Any] = {}
  for name, tensor in pieces.items():
    found = whole_of(cuts, name)
    if found is None:
      fused[name] = tensor
    else:
      fused.setdefault(found[0], {})[found[1]] = tensor
  return {
    name: np.concatenate([t[i] for i in sorted(t)]) if isinstance(t, dict) else t
    for name, t in fused.items()
  }


def pieces_of(cuts: Sequence[Cut], name: str, shape: Sequence[int]) -> list[tuple[str, Any, Any]]:
  """[(piece, first row, row after the last)]; a tensor that is not cut is its own only piece."""
  for cut in cuts:
    found = cut.pieces(name, shape[0] if shape else 1)
    if found:
      return list(found)
  return [(name, None, None)]


def whole_of(cuts: Sequence[Cut], piece: str) -> tuple[str, int] | None:
  return next((found for cut in cuts if (found := cut.whole(piece))), None)


class Place(NamedTuple):
  """Parameters that are not kept in the tree "params" under their own name.

  Targets that match `pattern` are kept in `tree` as `target`, with {0}, {1}, .. for its groups; of
  stacked ones, the layers from `first` on.
  """

  pattern: str
  tree: str
  target: str = "{0}"
  first: int = 0


class Home(NamedTuple):
  """Where one piece is kept."""

  tree: str
  target: str
  layer: int | None


class Table(NamedTuple):
  """Everything that a checkpoint of one model holds.

  Attributes:
    rules: names to parameters.
    shapes: every parameter the model has, "a/b/c" -> shape.
    cuts: tensors that the rules know as several.
    places: parameters kept elsewhere than in "params".
    optional: trees whose parameters a checkpoint may lack.
    verbatim: pattern of names, such as buffers, that are kept as they are.
    left: pattern of names that are left behind, because the network has no use for them.
    constants: values of parameters that a run need not have; others that it lacks are zero.
  """

  rules: Sequence[Rule]
  shapes: Mapping[str, tuple[int, ...]]
  cuts: Sequence[Cut] = ()
  places: Sequence[Place] = ()
  optional: Sequence[str] = ()
  verbatim: str = NEVER
  left: str = NEVER
  constants: Mapping[str, Any] = {}

  def home(self, target: str, layer: int | None) -> Home:
    for place in self.places:
      match = re.fullmatch(place.pattern, target)
      if match and (layer or 0) >= place.first:
        kept = None if layer is None else layer - place.first
        return Home(place.tree, place.target.format(*match.groups()), kept)
    return Home("params", target, layer)


class Array(NamedTuple):
  """An array of the output: its shape, with the layers first when `layered`."""

  shape: tuple[int, ...]
  dtype: np.dtype
  layered: bool


class Move(NamedTuple):
  """Rows of a tensor (None: all) and where they go."""

  start: int | None
  stop: int | None
  home: Home
  fn: Fn


class Plan(NamedTuple):
  moves: dict[str, list[Move]]  # by tensor
  arrays: dict[tuple[str, str], Array]  # by (tree, target)


class Made(NamedTuple):
  """A tensor of an export: its rows are those of the moves, in their order."""

  shape: tuple[int, ...]
  dtype: np.dtype
  moves: list[Move]


def moved_shape(fn: Callable, shape: Sequence[int], start=None, stop=None) -> tuple[int, ...]:
  """The shape that a transform gives, without any data.

  Raises:
    ValueError: a shape that the transform does not take.
  """
  dummy = np.broadcast_to(np.zeros((), np.int8), tuple(shape))
  try:
    return fn(dummy if start is None else dummy[start:stop]).shape
  except IndexError as e:
    raise ValueError(f"too few axes ({e})") from e


def plan_import(table: Table, tensors: Mapping[str, Any]) -> Plan:
  """Checks every tensor against the table.

  Args:
    table: what the checkpoint should hold.
    tensors: name -> anything with shape and dtype.

  Raises:
    ConversionError: the complete list of names that do not fit, on either side.
  """
  problems: list[str] = []
  moves: dict[str, list[Move]] = {}
  found: dict[str, dict[int | None, tuple[tuple[int, ...], np.dtype]]] = {}
  for name, tensor in tensors.items():
    if re.fullmatch(table.left, name):
      continue
    if re.fullmatch(table.verbatim, name):
      home = Home("unused", VERBATIM + name, None)
      moves[name] = [Move(None, None, home, same)]
      continue
    try:
      moves[name] = []
      for piece, start, stop in pieces_of(table.cuts, name, tensor.shape):
        rule, target, layer = locate(table.rules, piece)
        shape = moved_shape(rule.fn.there, tensor.shape, start, stop)
        slot = found.setdefault(target, {})
        if layer in slot:
          raise ConversionError(f"{name}: {target} is already filled by another name")
        slot[layer] = (shape, tensor.dtype)
        home = table.home(target, layer)
        if home.tree != "unused" and tensor.dtype not in FLOATS:
          raise ConversionError(f"{name}: {tensor.dtype}, but a weight is a float of 16 to 64 bits")
        moves[name].append(Move(start, stop, home, rule.fn))
    except ConversionError as e:
      problems.append(str(e))
    except ValueError as e:
      problems.append(f"{name} {tuple(tensor.shape)}: {e}")
  problems += compare(table, found)
  if problems:
    raise ConversionError("checkpoint and model disagree:\n  " + "\n  ".join(sorted(problems)))
  arrays = kept_arrays(table, found)
  for name in moves:
    if re.fullmatch(table.verbatim, name):
      key = ("unused", VERBATIM + name)
      arrays[key] = Array(tuple(tensors[name].shape), tensors[name].dtype, False)
  return Plan(moves, arrays)


def compare(table: Table, found: Mapping[str, Mapping]) -> list[str]:
  """What is wrong with the parameters as found: {target: {layer: (shape, dtype)}}."""
  problems = []
  for target, layers in found.items():
    if target not in table.shapes:
      problems.append(f"{target}: not a parameter of the model")
      continue
    want = tuple(table.shapes[target])
    layered = None not in layers
    missing = sorted(set(range(want[0])) - set(layers)) if layered else []
    extra = sorted(set(layers) - set(range(want[0]))) if layered else []
    if missing or extra:
      text = f"layers {missing} missing" if missing else f"layers {extra} too many"
      problems.append(f"{target}: {text}, the model has {want[0]}")
    for layer, (shape, _) in layers.items():
      if shape != (want[1:] if layered else want):
        number = "" if layer is None else f" of layer {layer}"
        problems.append(
          f"{target}{number}: {shape} in the checkpoint, {want[1:] if layered else want} in the "
          "model"
        )
    dtypes = sorted({str(dtype) for _, dtype in layers.values()})
    if len(dtypes) > 1:
      problems.append(f"{target}: its layers are of {' and '.join(dtypes)}")
  for target, want in table.shapes.items():
    if target not in found and table.home(target, None).tree not in table.optional:
      problems.append(f"{target} {tuple(want)}: filled by no tensor")
  return problems


def kept_arrays(table: Table, found: Mapping[str, Mapping]) -> dict[tuple[str, str], Array]:
  """(tree, target) -> Array, for parameters as found."""
  arrays: dict[tuple[str, str], Array] = {}
  for target, layers in found.items():
    for layer, (shape, dtype) in layers.items():
      home = table.home(target, layer)
      key = (home.tree, home.target)
      if layer is None:
        arrays[key] = Array(shape, dtype, False)
      else:
        count = arrays[key].shape[0] + 1 if key in arrays else 1
        arrays[key] = Array((count, *shape), dtype, True)
  return arrays


def plan_export(
  table: Table,
  arrays: Mapping[tuple[str, str], Any],
  *,
  fill: bool = False,
  ignored: str = NEVER,
) -> tuple[dict[str, Made], list[str]]:
  """Which tensors the arrays of a run become.

  Args:
    table: what the checkpoint must hold.
    arrays: (tree, target) -> anything with shape and dtype.
    fill: make the optional parameters that the run lacks of the table's constants, or of zeros.
    ignored: pattern of "tree/target" that belong to no checkpoint.

  Returns:
    the tensors, and the names of those that are filled.

  Raises:
    ConversionError: the complete list of parameters that are missing, of another shape, no
      floats, or left.
  """
  pieces: dict[str, tuple[Move, tuple, np.dtype]] = {}
  problems, filled, used = [], [], set()
  usual = next(iter(arrays.values())).dtype if arrays else np.dtype(np.float32)
  for name, target, layer, fn in expand(table.rules, table.shapes):
    home = table.home(target, layer)
    key = (home.tree, home.target)
    want = tuple(table.shapes[target])[0 if layer is None else 1 :]
    if key not in arrays and home.tree in table.optional:
      if fill:
        filled.append(name)
        move = Move(None, None, Home(CONSTANT, target, layer), fn)
        pieces[name] = (move, moved_shape(fn.back, want), usual)
      continue
    if key not in arrays:
      problems.append(f"{'/'.join(key)}: not in the run, for {name}")
      continue
    used.add(key)
    have = tuple(arrays[key].shape)
    if have[0 if layer is None else 1 :] != want or (home.layer or 0) >= (have or (1,))[0]:
      problems.append(f"{'/'.join(key)}: {have} in the run, {want} for {name}")
      continue
    if home.tree != "unused" and arrays[key].dtype not in FLOATS:
      problems.append(f"{'/'.join(key)}: {arrays[key].dtype} in the run, no float for {name}")
      continue
    move = Move(None, None, home, fn)
    pieces[name] = (move, moved_shape(fn.back, want), np.dtype(arrays[key].dtype))
  for key in sorted(arrays.keys() - used):
    if key[0] == "unused" and key[1].startswith(VERBATIM):
      move, array = Move(None, None, Home(*key, None), same), arrays[key]
      pieces[key[1].removeprefix(VERBATIM)] = (move, tuple(array.shape), array.dtype)
    elif not re.fullmatch(ignored, "/".join(key)):
      problems.append(f"{'/'.join(key)}: no rule exports it")
  if problems:
    raise ConversionError("run and checkpoint disagree:\n  " + "\n  ".join(sorted(problems)))
  return fuse(table.cuts, pieces), filled


def fuse(cuts: Sequence[Cut], pieces: Mapping[str, tuple[Move, tuple, np.dtype]]):
  """Pieces -> whole tensors, in the pieces' order.

  Raises:
    ConversionError: pieces of one tensor that differ in dtype.
  """
  groups: dict[str, dict[int, tuple[Move, tuple, np.dtype]]] = {}
  for name, piece in pieces.items():
    whole, number = whole_of(cuts, name) or (name, 0)
    groups.setdefault(whole, {})[number] = piece
  made = {}
  for name, parts in groups.items():
    ordered = [parts[i] for i in sorted(parts)]
    dtypes = {np.dtype(d) for _, _, d in ordered}
    if len(dtypes) > 1:
      raise ConversionError(f"{name}: its parts are of {sorted(map(str, dtypes))}")
    shape = ordered[0][1]
    if len(ordered) > 1:
      shape = (sum(s[0] for _, s, _ in ordered), *shape[1:])
    made[name] = Made(shape, dtypes.pop(), [move for move, _, _ in ordered])
  return made


def total(arrays: Iterable[Any]) -> int:
  """Bytes of anything with shape and dtype."""
  return sum(int(np.prod(a.shape, dtype=np.int64)) * np.dtype(a.dtype).itemsize for a in arrays)
