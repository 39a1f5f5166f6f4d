r"""The conversion engine: a checkpoint is a table of rules, and the table runs both ways.

A rule matches whole PyTorch names. Its first group, when it is `(\d+)`, is the layer: the engine
stacks those tensors on a leading axis. Every other group is an alternation such as
`(gate|up|down)`, used in the target as {1}, {2}, ... (numbered without the layer). Everything
here is numpy; dtypes are kept.

  name = r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight"
  rules = [Rule(name, "blocks/mlp/{1}/kernel", transpose)]
  params = to_params(rules, state_dict, shapes)
  state_dict = to_state_dict(rules, params)

The engine refuses a name matched by no rule or by two, a parameter left empty, a missing layer
and a wrong shape, and says all of them at once.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Tree = dict[str, Any]


class ConversionError(ValueError):
  """A checkpoint that does not match its table; the message lists every name."""


class Fn(NamedTuple):
  """A transform and its inverse, on numpy arrays."""

  there: Callable[[np.ndarray], np.ndarray]
  back: Callable[[np.ndarray], np.ndarray]


same = Fn(lambda w: w, lambda w: w)
transpose = Fn(lambda w: w.T, lambda w: w.T)  # [out in] <-> [in out]
conv = Fn(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))  # OIYX <-> YXIO


def split_heads(heads: int) -> Fn:
  """[h*k d] <-> [d h k]."""
  return Fn(lambda w: w.T.reshape(w.shape[1], heads, -1), lambda w: w.reshape(w.shape[0], -1).T)


def split_pairs(heads: int) -> Fn:
  """[h*k d] <-> [d h k], where pairs of neighbours, which turn together, come apart by k/2."""

  def there(w):
    pairs = w.T.reshape(w.shape[1], heads, -1, 2)  # [d h k/2 2]
    return pairs.swapaxes(2, 3).reshape(w.shape[1], heads, -1)

  def back(w):
    halves = w.reshape(w.shape[0], heads, 2, -1)  # [d h 2 k/2]
    return halves.swapaxes(2, 3).reshape(w.shape[0], -1).T

  return Fn(there, back)


def split_bias(heads: int) -> Fn:
  """[h*k] <-> [h k]."""
  return Fn(lambda b: b.reshape(heads, -1), lambda b: b.reshape(-1))


def merge_heads(heads: int) -> Fn:
  """[d h*k] <-> [h k d]."""
  return Fn(lambda w: w.T.reshape(heads, -1, w.shape[0]), lambda w: w.reshape(-1, w.shape[-1]).T)


class Rule(NamedTuple):
  pattern: str
  target: str
  fn: Fn = same

  @property
  def layered(self) -> bool:
    return "(\\d+)" in self.pattern


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": x}} -> {"a/b": x}."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{key}/")
    else:
      flat[prefix + key] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
  """{"a/b": x} -> {"a": {"b": x}}."""
  tree: Tree = {}
  for name, value in flat.items():
    *path, leaf = name.split("/")
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    node[leaf] = value
  return tree


def locate(rules: Sequence[Rule], name: str) -> tuple[Rule, str, int | None]:
  """A PyTorch name -> (its rule, its target, its layer or None).

  Raises:
    ConversionError: no rule matches, or two do.
  """
  hits = [(r, m) for r in rules if (m := re.fullmatch(r.pattern, name))]
  if len(hits) != 1:
    found = "no rule" if not hits else " and ".join(r.pattern for r, _ in hits)
    raise ConversionError(f"{name}: matched by {found}")
  rule, match = hits[0]
  groups = list(match.groups())
  layer = int(groups.pop(0)) if rule.layered else None
  return rule, rule.target.format("", *groups), layer


def expand(
  rules: Sequence[Rule], shapes: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, str, int | None, Fn]]:
  """Every PyTorch name that the parameters of these shapes become: (name, target, layer, fn)."""
  for rule in rules:
    parts = re.split(r"\(([^()?]+)\)", rule.pattern)  # text, group, text, group, ...
    text = [re.sub(r"\\(.)", r"\1", t) for t in parts[0::2]]
    choices = [g.split("|") for g in parts[1::2] if g != "\\d+"]
    for picked in itertools.product(*choices):
      target = rule.target.format("", *picked)
      if target not in shapes:
        continue
      for layer in range(shapes[target][0]) if rule.layered else [None]:
        names = iter(picked)
        groups = [str(layer) if g == "\\d+" else next(names) for g in parts[1::2]]
        name = text[0] + "".join(g + t for g, t in zip(groups, text[1:], strict=True))
        yield name, target, layer, rule.fn


def to_params(
  rules: Sequence[Rule], tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any] | None = None
) -> Tree:
  """PyTorch names -> nested params.

  Args:
    rules: the table.
    tensors: name -> array, in the layout of the original.
    shapes: nested tree of anything with .shape that the result must match; None skips the check.

  Raises:
    ConversionError: listing every unmatched name, double match, missing layer, empty parameter
      and wrong shape.
  """
  problems: list[str] = []
  single: dict[str, np.ndarray] = {}
  layers: dict[str, dict[int, np.ndarray]] = {}
  for name, tensor in tensors.items():
    try:
      rule, target, layer = locate(rules, name)
    except ConversionError as e:
      problems.append(str(e))
      continue
    try:
      array = rule.fn.there(np.asarray(tensor))
    except ValueError as e:
      problems.append(f"{name} {tuple(tensor.shape)}: {e}")
      continue
    slot = single if layer is None else layers.setdefault(target, {})
    key = target if layer is None else layer
    if key in slot:
      problems.append(f"{name}: {target} is already filled by another name")
    slot[key] = array  # type: ignore[index]
  for target, parts in layers.items():
    missing = sorted(set(range(max(parts) + 1)) - set(parts))
    if missing or len({p.shape for p in parts.values()}) != 1:
      problems.append(f"{target}: layers {missing} missing or of different shapes")
      continue
    single[target] = np.stack([parts[i] for i in range(len(parts))])
  if shapes is not None:
    expected = {k: tuple(v.shape) for k, v in flatten(shapes).items()}
    problems += [f"{k} {expected[k]}: filled by no tensor" for k in expected.keys() - single.keys()]
    for k, v in single.items():
      if k not in expected:
        problems.append(f"{k}: not a parameter of the model")
      elif expected[k] != v.shape:
        problems.append(f"{k}: {v.shape} in the checkpoint, {expected[k]} in the model")
  if problems:
    raise ConversionError("checkpoint and model disagree:\n  " + "\n  ".join(sorted(problems)))
  return unflatten(single)


def to_state_dict(rules: Sequence[Rule], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Nested params -> PyTorch names, the exact inverse of `to_params`.

  Raises:
    ConversionError: a parameter that no rule produces.
  """
  flat = {k: np.asarray(v) for k, v in flatten(params).items()}
  tensors, used = {}, set()
  for name, target, layer, fn in expand(rules, {k: v.shape for k, v in flat.items()}):
    used.add(target)
    array = flat[target] if layer is None else flat[target][layer]
    tensors[name] = np.asarray(fn.back(array), order="C")
  left = sorted(flat.keys() - used)
  if left:
    raise ConversionError("no rule exports:\n  " + "\n  ".join(left))
  return tensors
