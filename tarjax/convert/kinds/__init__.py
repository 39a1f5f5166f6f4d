"""The kinds of checkpoint that `convert` knows; a new one is a module here and a line in KINDS.

A kind recognises its files, gives the table that both directions run, and makes what stands around
the tensors in an export.
"""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from tarjax.convert.formats import Tensor
from tarjax.convert.plan import Table
from tarjax.convert.rules import ConversionError
from tarjax.convert.tensors import Source


class Found(NamedTuple):
  """What a source was recognised as.

  Attributes:
    kind: its name in KINDS.
    config: of the run that is made of it: task, model and what else its task reads.
    table: what must be in it.
    layout: plain values that an export needs to restore names and what stands around them.
  """

  kind: str
  config: dict[str, Any]
  table: Table
  layout: dict[str, Any]


class Kind(Protocol):
  """What a module here defines."""

  TASK: str  # whose runs have this network
  FORMAT: str  # "hf", "torch" or "diffusers": what the original code loads
  FILE: str  # default name of the exported file, for "torch"
  PARTS: tuple[tuple[str, str], ...]  # (heading, pattern of parameters), for `inspect`

  @staticmethod
  def recognise(source: Source, given: Mapping[str, Any]) -> Found | None:
    """None for files of another kind; `given` is what the files do not say themselves.

    Raises:
      ConversionError: files of this kind that are not complete.
    """
    ...

  @staticmethod
  def check(source: Source, found: Found) -> None:
    """Raises a ConversionError for values that the network could not be right with."""
    ...

  @staticmethod
  def table(config: Mapping[str, Any], layout: Mapping[str, Any]) -> Table:
    """The table of a run's config."""
    ...

  @staticmethod
  def around(config: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
    """For "torch" what the pickle holds beside its tensors; for the others their config.json."""
    ...


KINDS = ("qwen2", "siglip2", "ta_tok", "vqvae", "llamagen", "ar_dtok", "dif_dtok", "dc_ae")


def load_kind(name: str) -> Kind:
  """The module of a kind."""
  if name not in KINDS:
    raise ConversionError(f"{name!r} is no kind of checkpoint: there are {', '.join(KINDS)}")
  module: Any = importlib.import_module(f"tarjax.convert.kinds.{name}")
  return module


def kind_of_task(task: str) -> str:
  """The kind whose network a training task has."""
  for name in KINDS:
    if load_kind(name).TASK == task:
      return name
  raise ConversionError(f"a run of task {task!r} has no checkpoint format")


def recognise(source: Source, given: Mapping[str, Any]) -> Found:
  """The kind of a source.

  Raises:
    ConversionError: none, or one that is not complete.
  """
  for name in KINDS:
    try:
      found = load_kind(name).recognise(source, given)
    except ConversionError:
      raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
      what = f"{e} is missing" if isinstance(e, KeyError) else " ".join(str(e).split())[:200]
      raise ConversionError(f"{source.path}: its config or args are none of {name}: {what}") from e
    if found:
      return found
  names = list(source.tensors)
  alone = ", and no config.json says more" if source.path.is_dir() and not source.config else ""
  raise ConversionError(
    f"{source.path} is no checkpoint of Tar: none of {', '.join(KINDS)} has "
    f"{len(names)} tensors named like {names[0]}{alone}"
  )


def tensor(source: Source, name: str, what: str, axes: int) -> Tensor:
  """A tensor that tells sizes.

  Raises:
    ConversionError: it is not there, or has another number of axes.
  """
  if name not in source.tensors:
    raise ConversionError(f"{source.path} looks like {what} but lacks {name}")
  found = source.tensors[name]
  if len(found.shape) != axes or 0 in found.shape:
    raise ConversionError(f"{source.path}: {name} is {found.shape}, which {what} cannot be")
  return found


def count(source: Source, prefix: str) -> int:
  """One more than the largest number that follows `prefix` in a name."""
  rest = [n[len(prefix) :].split(".")[0] for n in source.tensors if n.startswith(prefix)]
  return max((int(n) + 1 for n in rest if n.isdigit()), default=0)


def diffusers_class(source: Source, config: Mapping[str, Any], name: str, mark: str) -> bool:
  """Whether a source is of this class of diffusers, by its config or, if that is silent, a tensor.

  Raises:
    ConversionError: it is, and nothing says its sizes.
  """
  if "_class_name" in config:
    return config["_class_name"] == name
  if mark not in source.tensors or "model_type" in config:
    return False
  if not config:
    raise ConversionError(
      f"{source.path} looks like a {name} but has no config.json with its sizes"
    )
  return True


def guess_heads(width: int) -> int:
  """Heads 64 wide where they divide the width, and else a single one; to be told to the user."""
  return width // 64 if width % 64 == 0 else 1
