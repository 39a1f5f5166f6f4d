"""How the metrics of `tarjax.ablations` tables are read from what the runs left.

Each reader takes the directory of a run that scored, and gives None where a score is missing.
"""

import functools
import json
import math
from pathlib import Path
from typing import Any

from tarjax.ablations import Measured, Metric
from tarjax.config import UserError

KINDS = 6  # of prompts, and of questions, on digits
NORMAL = 1.96  # standard errors to the ends of a 95% interval

# What the scores behind "Und" are divided by: the best unified models of Table 1.
REFERENCES = {
  ("pope", "f1"): 0.885,
  ("mme", "perception"): 1571.0,
  ("seed", "image"): 0.730,
  ("gqa", "exact_match"): 0.620,
}


def read(path: Path) -> dict[str, Any]:
  """The object in a file of scores; {} when there is none.

  Raises:
    UserError: it is damaged.
  """
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_bytes())
  except ValueError as e:
    raise UserError(f"{path} is damaged: {e}") from e
  if not isinstance(found, dict):
    raise UserError(f"{path} is damaged: it holds no object")
  return found


def shares(group: str, run: Path) -> Measured | None:
  """Mean over the six scores of digits in "i2t" or "t2i"; the interval is that of the drawing."""
  scores = read(run / "scores.json")
  values = [v for k, v in scores.get(group, {}).items() if k != "overall"]
  if not values:
    return None
  value, each = sum(values) / len(values), scores["settings"]["prompts"] / KINDS
  error = math.sqrt(sum(v * (1 - v) / each for v in values)) / len(values)
  return Measured(value, value - NORMAL * error, value + NORMAL * error)


def logged(stage: str, key: str, step: int, run: Path) -> Measured | None:
  """The curve of a stage of the run's folder: what it logged last up to this step."""
  from tarjax.evals.report import read_run  # imports what draws digits

  lines = [x for x in read_run(run.parent / stage) if key in x and x["step"] <= step]
  return Measured(float(lines[-1][key])) if lines else None


def kept(version: str, run: Path) -> Measured | None:
  """Share of digits that are still read after a reconstruction on digits: "vqvae", "scale2", ..."""
  found = read(run / "scores.json").get("reconstruction", {}).get(version, {})
  return Measured(found["digit"]) if "digit" in found else None


def benchmark(name: str, metric: str, run: Path, times: float = 1) -> Measured | None:
  """One score of `tarjax.evaluate`'s benchmarks (shares in [0, 1], MME's points), so many times."""
  found = read(run / "scores.json").get("benchmarks", {}).get(name, {}).get("scores", {})
  measured = _measured(found.get(metric))
  return scaled(measured, times)


def und(run: Path) -> Measured | None:
  """100 x the harmonic mean over POPE, MME-P, SEED and GQA, each relative to `REFERENCES`."""
  ratios = []
  for of, reference in REFERENCES.items():
    if (found := benchmark(*of, run)) is None:
      return None
    ratios.append(reference / max(found.value, 1e-9))
  return Measured(100 * len(ratios) / sum(ratios))


def judged(file: str, metric: str, run: Path) -> Measured | None:
  """A score that a judge wrote in the run's directory: dpg.json, geneval.json, fid.json."""
  return _measured(read(run / file).get("scores", {}).get(metric))


def scaled(found: Measured | None, times: float) -> Measured | None:
  """In other units."""
  if found is None or found.low is None or found.high is None:
    return found and Measured(times * found.value)
  return Measured(times * found.value, times * found.low, times * found.high)


def _measured(found: Any) -> Measured | None:
  if isinstance(found, dict):
    return Measured(found["value"], found.get("low"), found.get("high"))
  return None if found is None else Measured(float(found))


UNDERSTANDING = Metric("understanding", functools.partial(shares, "i2t"))
GENERATION = Metric("generation", functools.partial(shares, "t2i"))
UND = Metric("Und", und)
DPG = Metric("DPG", functools.partial(judged, "dpg.json", "dpg"))
GENEVAL = Metric("GenEval", functools.partial(judged, "geneval.json", "overall"))
