"""A table of the paper as a graph of runs, which is what a page of configs/ablations/ declares.

A page has `get_config(variant)`, the training configs of its rows, and `get_table(mini)`, a
`Table`. `tarjax.ablate` makes what the table names in a folder OUT, `evals.table_report` reads
it. OUT holds folders like a quickstart's: each stage in one is a run of its own, or a link to a run
in another folder or in BASE, the folder of what was trained before; so "../ta_tok" in configs and
--model of the verbs work as ever, and what rows have in common is made once.
"""

import enum
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tarjax.config import UserError

MADE = "table.json"  # in OUT: whose table it is
EXPECTED = ("higher", "lower", "not lower", "not converged")


@dataclass(frozen=True)
class Run:
  """A process that leaves a directory OUT/FOLDER/STAGE.

  Attributes:
    module: of `python -m`.
    arguments: of the command; in them {run} is the directory, {folder} the one around it, and
      {data} what the launcher's --data says.
    reads: the stages of its folder that must be there.
    done: the file in its directory that it writes last.
  """

  module: str
  arguments: tuple[str, ...]
  reads: tuple[str, ...] = ()
  done: str = "done.json"


@dataclass(frozen=True)
class Folder:
  """OUT/FOLDER: what is made in it, and which stages are another's.

  Attributes:
    runs: by stage.
    links: stage -> "FOLDER/STAGE", or the stage of BASE. Stages that a run reads, and that are
      neither here nor among the runs, are BASE's of the same name.
    components: of the table's bundle, those that are other stages here.
    preprocessing: of the bundle, what is another here.
    representation: of the bundle; "" is the table's.
  """

  runs: Mapping[str, Run]
  links: Mapping[str, str] = field(default_factory=dict)
  components: Mapping[str, str] = field(default_factory=dict)
  preprocessing: Mapping[str, Any] = field(default_factory=dict)
  representation: str = ""


class Measured(NamedTuple):
  """A score; its interval where one run shows how sure it is."""

  value: float
  low: float | None = None
  high: float | None = None


@dataclass(frozen=True)
class Metric:
  """`read` takes the directory of a run that has scored, and gives None where nothing is there."""

  title: str
  read: Callable[[Path], Measured | None]


@dataclass(frozen=True)
class Row:
  """A row of the paper's table.

  Attributes:
    title: as the paper names it.
    scores: metric -> the runs "FOLDER/STAGE" that it is read from, one of each seed.
    paper: metric -> the paper's number, in the paper's units.
  """

  title: str
  scores: Mapping[str, tuple[str, ...]]
  paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Effect:
  """What the paper finds: `row` against `than`, in one metric.

  Attributes:
    says: the finding, in words.
    expected: one of `EXPECTED`. "not lower" allows for `margin`; "not converged" is of `row` alone.
  """

  says: str
  metric: str
  row: str
  than: str = ""
  expected: str = "higher"
  margin: float = 0.0


@dataclass(frozen=True)
class Table:
  """A table of the paper: see the classes above.

  Attributes:
    metrics, rows, folders: by name.
    bundle: what bundle.json says in each folder; {} where nothing is loaded as a model.
    note: what a reader of the numbers must know.
    curve: (stage, key of its log) of a learning curve to show.
    question: the first line of the page.
  """

  title: str
  metrics: Mapping[str, Metric]
  rows: Mapping[str, Row]
  folders: Mapping[str, Folder]
  effects: tuple[Effect, ...] = ()
  bundle: Mapping[str, Any] = field(default_factory=dict)
  note: str = ""
  curve: tuple[str, str] | None = None
  question: str = ""

  def run(self, key: str) -> Run:
    """The run of "FOLDER/STAGE"."""
    folder, _, stage = key.partition("/")
    return self.folders[folder].runs[stage]

  def origin(self, folder: str, stage: str) -> str:
    """Where a stage of a folder comes from: the key of a run, or the name of a stage of BASE."""
    if stage in self.folders[folder].runs:
      return f"{folder}/{stage}"
    return self.folders[folder].links.get(stage, stage)

  def needed(self, key: str) -> list[str]:
    """The runs that this one reads, each once."""
    folder = key.partition("/")[0]
    found = (self.origin(folder, stage) for stage in self.run(key).reads)
    return list(dict.fromkeys(key for key in found if "/" in key))

  def closure(self, keys: Sequence[str]) -> list[str]:
    """These runs and all that they need, what is needed first."""
    found: dict[str, bool] = {}  # whether all that it needs is before it

    def visit(key: str, path: tuple[str, ...]) -> None:
      if key in path:
        raise UserError(f"{self.title}: {' needs '.join((*path, key))}")
      if key not in found:
        for other in self.needed(key):
          visit(other, (*path, key))
        found[key] = True

    for key in keys:
      visit(key, ())
    return list(found)

  def of_rows(self, names: Sequence[str]) -> list[str]:
    """All runs that these rows need, in an order in which they can be made.

    Raises:
      UserError: no such row.
    """
    for name in names:
      if name not in self.rows:
        raise UserError(f"{self.title} has no row {name!r}; its rows are {', '.join(self.rows)}")
    scored = (self.rows[name].scores.values() for name in names)
    return self.closure([key for groups in scored for keys in groups for key in keys])

  def of_base(self, keys: Sequence[str]) -> list[str]:
    """The stages of BASE that these runs read."""
    found = (
      self.origin(folder, stage)
      for key in keys
      for folder in [key.partition("/")[0]]
      for stage in self.run(key).reads
    )
    return sorted({stage for stage in found if "/" not in stage})


class State(enum.StrEnum):
  """How far a run is, as OUT shows it."""

  MISSING = "missing"
  DONE = "done"
  CRASHED = "crashed"
  NOT_CONVERGED = "not converged"


def failed_file(out: Path, key: str) -> Path:
  """Where a run that did not end well is recorded: its verdict, exit code and last lines."""
  return out / f"{key}.failed.json"


def state(table: Table, out: Path, key: str) -> State:
  """The state of the run "FOLDER/STAGE"."""
  if (out / key / table.run(key).done).is_file():
    return State.DONE
  try:
    return State(json.loads(failed_file(out, key).read_text())["verdict"])
  except FileNotFoundError:
    return State.MISSING


def check(table: Table) -> None:
  """Raises UserError for a name that stands for nothing, or runs that need each other."""

  def known(key: str, whose: str) -> None:
    folder, _, stage = key.partition("/")
    if folder not in table.folders or stage not in table.folders[folder].runs:
      raise UserError(f"{table.title}: {whose} names {key!r}, which is no run")

  for name, folder in table.folders.items():
    for stage, target in folder.links.items():
      if "/" in target:
        known(target, f"the link {name}/{stage}")
  for name, row in table.rows.items():
    for metric, keys in row.scores.items():
      if metric not in table.metrics:
        raise UserError(f"{table.title}: row {name!r} has a score {metric!r}, which is no metric")
      for key in keys:
        known(key, f"row {name!r}")
  for effect in table.effects:
    than = effect.expected != "not converged"
    for row in (effect.row, effect.than) if than else (effect.row,):
      if row not in table.rows:
        raise UserError(f"{table.title}: an effect is of {row!r}, which is no row")
    if effect.expected not in EXPECTED or (than and effect.metric not in table.metrics):
      raise UserError(f"{table.title}: an effect is {effect.expected!r} in {effect.metric!r}")
  table.of_rows(list(table.rows))


def load(page: str, mini: bool) -> Table:
  """The table of a page, FILE.

  Raises:
    UserError: no such file, one that fails, or one that declares no table, or a broken one.
  """
  module = _import(page)
  if not hasattr(module, "get_table"):
    raise UserError(f"{page} is no table: it has no get_table")
  try:
    table = module.get_table(mini)
  except UserError:
    raise
  except Exception as e:  # whatever a page may raise
    raise UserError(f"{page} fails: {type(e).__name__}: {e}") from e
  check(table)
  return replace(table, question=(module.__doc__ or "").strip().partition("\n")[0])


def _import(page: str) -> ModuleType:
  path = Path(page)
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if not path.is_file() or spec is None or spec.loader is None:
    raise UserError(f"there is no table {page}: give a file such as configs/ablations/scales.py")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except Exception as e:
    raise UserError(f"{page} fails: {type(e).__name__}: {e}") from e
  return module


# --- what pages are made of -------------------------------------------------------------------


def train(config: str, *changes: str, reads: Sequence[str], seed: int = 0) -> Run:
  """A training run of FILE:variant with --config.key=value changes."""
  words = (f"--config={config}", "--workdir={run}", f"--config.seed={seed}", *changes)
  return Run("tarjax.train", words, tuple(reads))


def encode(config: str, *changes: str, reads: Sequence[str]) -> Run:
  """A pre-tokenisation of FILE:variant."""
  return Run("tarjax.encode", (f"--config={config}", "--workdir={run}", *changes), tuple(reads))


def score(*words: str, reads: Sequence[str]) -> Run:
  """`tarjax.evaluate` of the folder's bundle, into scores.json."""
  command = ("--model", "{folder}", "--out", "{run}/scores.json", *words)
  return Run("tarjax.evaluate", command, tuple(reads), "scores.json")


def same(keys: Sequence[str], *metrics: str) -> dict[str, tuple[str, ...]]:
  """Scores of several metrics that are read from the same runs."""
  return {metric: tuple(keys) for metric in metrics}


def configs_of(table: Table, keys: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
  """(FILE:variant, the changes) of each different training config among runs."""
  seen = set()
  for key in keys:
    run = table.run(key)
    words = [w for w in run.arguments if w.startswith("--config")]
    words = [w for w in words if not w.startswith("--config.seed")]
    if run.module.endswith("train") and words and tuple(words) not in seen:
      seen.add(tuple(words))
      yield words[0].removeprefix("--config="), words[1:]
