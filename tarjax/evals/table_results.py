"""What a table's runs say beside the paper: estimates, differences, verdicts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tarjax.ablations import Effect, Measured, Row, State, Table, failed_file, state
from tarjax.evals import intervals

NOT_SCORED = "not scored"
AGREES, DOES_NOT, UNDECIDED = "agrees with the paper", "does not agree", "undecided"
WITHOUT_FIGURES = {AGREES: "as expected", DOES_NOT: "not as expected"}  # of the paper


class Estimate(NamedTuple):
  """A score over runs; no interval where there is one run that shows none."""

  value: float
  low: float | None
  high: float | None
  runs: int


@dataclass(frozen=True)
class Cell:
  """Ours of one row and metric: an estimate from the seeds that scored, and each one's state."""

  estimate: Estimate | None
  measured: tuple[Measured | None, ...]
  states: tuple[str, ...]  # of `State`, or NOT_SCORED

  @property
  def trouble(self) -> str:
    """ "2 of 3 crashed"; "" when all scored."""
    bad = [s for s in dict.fromkeys(self.states) if s != State.DONE]
    many = len(self.states) > 1
    return ", ".join(
      f"{self.states.count(s)} of {len(self.states)} {s}" if many else s for s in bad
    )


@dataclass(frozen=True)
class Finding:
  """An effect: the paper's difference, ours, and whether they agree."""

  effect: Effect
  paper: float | None
  ours: Estimate | None
  verdict: str


@dataclass(frozen=True)
class Results:
  """All that a report shows; `crashes` has what failed_file holds, by run."""

  cells: dict[str, dict[str, Cell]]  # row -> metric
  findings: list[Finding]
  crashes: dict[str, dict[str, Any]]


def read(table: Table, out: Path) -> Results:
  """The results of the folder OUT, finished or not."""
  cells = {
    name: {metric: cell(table, out, row, metric) for metric in row.scores}
    for name, row in table.rows.items()
  }
  crashes = {
    key: json.loads(failed_file(out, key).read_text())
    for key in table.of_rows(list(table.rows))
    if state(table, out, key) in (State.CRASHED, State.NOT_CONVERGED)
  }
  return Results(cells, [finding(table, cells, e) for e in table.effects], crashes)


def cell(table: Table, out: Path, row: Row, metric: str) -> Cell:
  """One cell of ours."""
  measured, states = [], []
  for key in row.scores[metric]:
    how: str = ending(table, out, key)
    found = table.metrics[metric].read(out / key) if how == State.DONE else None
    measured.append(found)
    states.append(NOT_SCORED if how == State.DONE and found is None else how)
  return Cell(estimate([m for m in measured if m]), tuple(measured), tuple(states))


def ending(table: Table, out: Path, key: str) -> State:
  """The state of a run, or of what keeps it from being made."""
  if (own := state(table, out, key)) != State.MISSING:
    return own
  states = {state(table, out, need) for need in table.closure([key])}
  ends = (State.CRASHED, State.NOT_CONVERGED)
  return next((end for end in ends if end in states), State.MISSING)


def estimate(found: Sequence[Measured]) -> Estimate | None:
  """Several seeds by their spread, one by its own interval; None of nothing."""
  if not found:
    return None
  if len(found) == 1:
    return Estimate(*found[0], 1)
  return Estimate(*intervals.of_runs([m.value for m in found]), len(found))


def difference(a: Cell, b: Cell) -> Estimate | None:
  """a - b: seed by seed where two or more have both, else from the two intervals."""
  pairs = [(x, y) for x, y in zip(a.measured, b.measured, strict=False) if x and y]
  if len(pairs) > 1:
    return Estimate(*intervals.of_runs([x.value - y.value for x, y in pairs]), len(pairs))
  if not a.estimate or not b.estimate:
    return None
  value, runs = a.estimate.value - b.estimate.value, min(a.estimate.runs, b.estimate.runs)
  reach = 0.0
  for one in (a.estimate, b.estimate):
    if one.low is None or one.high is None:
      return Estimate(value, None, None, runs)
    reach += ((one.high - one.low) / 2) ** 2
  return Estimate(value, value - reach**0.5, value + reach**0.5, runs)


def finding(table: Table, cells: dict[str, dict[str, Cell]], effect: Effect) -> Finding:
  """What ours say of an effect."""
  row = table.rows[effect.row]
  if effect.expected == State.NOT_CONVERGED:
    states = [s for c in cells[effect.row].values() for s in c.states]
    verdict = AGREES if set(states) == {State.NOT_CONVERGED} else UNDECIDED
    return Finding(effect, None, None, DOES_NOT if set(states) == {State.DONE} else verdict)
  one, other = row.paper.get(effect.metric), table.rows[effect.than].paper.get(effect.metric)
  paper = None if one is None or other is None else one - other
  a, b = (cells[name].get(effect.metric) for name in (effect.row, effect.than))
  ours = difference(a, b) if a and b else None
  one_of_several = ours and ours.runs == 1 and len(row.scores.get(effect.metric, ())) > 1
  verdict = UNDECIDED if one_of_several else judge(effect, ours)
  return Finding(
    effect, paper, ours, WITHOUT_FIGURES.get(verdict, verdict) if paper is None else verdict
  )


def judge(effect: Effect, ours: Estimate | None) -> str:
  """Whether the whole interval is on the paper's side, or on the other."""
  if ours is None or ours.low is None or ours.high is None:
    return UNDECIDED
  low, high = ours.low, ours.high
  if effect.expected == "lower":
    low, high = -high, -low
  least = -effect.margin if effect.expected == "not lower" else 0.0
  if low > least:
    return AGREES
  return DOES_NOT if high < least else UNDECIDED
