"""GenEval's rules (arXiv 2310.11513): whether found objects are what a prompt names.

A prompt's metadata is a line of evaluation_metadata.jsonl: {"tag", "prompt", "include": [{"class",
"count", "color"?, "position"?: [relation, number of an earlier clause]}], "exclude"?: [{"class",
"count"}]}. The overall score is the mean over the six tags of the share of right pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tarjax.evals import intervals

VERSION = 1
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
SURE, SURE_COUNT = 0.3, 0.9  # least score of an object, and where objects are counted
MOST = 16  # objects of a class
CLOSE = 0.1  # share of the summed box sizes by which centres must differ to lie apart
TOWARDS = 0.5  # least part of the unit offset in the direction of a relation


class Thing(NamedTuple):
  """A found object: box (x0, y0, x1, y1), score, mask bool[y x]."""

  box: tuple[float, float, float, float]
  score: float
  mask: np.ndarray | None = None


Found = Mapping[str, Sequence[Thing]]
Paint = Callable[[str, Sequence[Thing]], list[str]]


def keep(found: Found, tag: str) -> dict[str, list[Thing]]:
  """The objects that count, the surest first; classes without any are left out."""
  least = SURE_COUNT if tag == "counting" else SURE
  kept = {}
  for name, things in found.items():
    sure = sorted((t for t in things if t.score > least), key=lambda t: -t.score)[:MOST]
    if sure:
      kept[name] = sure
  return kept


def judge(found: Found, wanted: Mapping[str, Any], paint: Paint) -> tuple[bool, str]:
  """Whether kept objects are what a prompt names, and what is not.

  Args:
    found: {class: objects, the surest first}.
    wanted: the prompt's metadata.
    paint: (class, objects) -> the colour of each.
  """
  groups: list[Sequence[Thing] | None] = []  # the objects of each clause, None where it fails
  faults = []
  for clause in wanted.get("include", ()):
    name, count = clause["class"], clause["count"]
    things = found.get(name, ())[:count]
    fault = ""
    if len(things) < count:
      fault = f"expected {name}>={count}, found {len(things)}"
    if not fault and "color" in clause:
      seen = paint(name, things)
      if seen.count(clause["color"]) < count:
        fault = f"expected {clause['color']} {name}>={count}, found {', '.join(seen)}"
    if not fault and "position" in clause:
      relation, target = clause["position"]
      fault = misplaced(name, things, relation, groups[target])
    faults += [fault] if fault else []
    groups.append(None if fault else things)
  for clause in wanted.get("exclude", ()):
    name, count = clause["class"], clause["count"]
    if len(found.get(name, ())) >= count:
      faults.append(f"expected {name}<{count}, found {len(found[name])}")
  return not faults, "\n".join(faults)


def misplaced(name: str, things: Sequence[Thing], relation: str, targets) -> str:
  """What is wrong with the place of some objects beside others, or nothing."""
  if targets is None:
    return f"no target for {name} to be {relation}"
  for thing in things:
    for target in targets:
      if relation not in (seen := relations(thing, target)):
        return f"expected {name} {relation} target, found {' and '.join(seen)} target"
  return ""


def relations(a: Thing, b: Thing) -> list[str]:
  """Every side of b on which a lies: none when they are too close, two on a diagonal."""
  corners = np.array([a.box[:4], b.box[:4]], np.float64).reshape(2, 2, 2)  # [thing corner xy]
  centres, sizes = corners.mean(1), np.abs(corners[:, 1] - corners[:, 0])
  offset = centres[0] - centres[1]
  apart = np.maximum(np.abs(offset) - CLOSE * sizes.sum(0), 0) * np.sign(offset)
  if (np.abs(apart) < 1e-3).all():
    return []
  dx, dy = apart / np.linalg.norm(offset)
  parts = zip(RELATIONS, (-dx, dx, -dy, dy), strict=True)
  return [relation for relation, part in parts if part > TOWARDS]


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
  """Scores with intervals of rows {"tag", "prompt", "correct"}, ours or the official program's.

  Prompts are what is drawn at random; the overall score is the mean of the tags that are there.
  """
  prompts: dict[tuple[str, str], dict[str, float]] = {}
  for row in rows:
    tag = row["tag"]
    count = prompts.setdefault((tag, row["prompt"]), {"pictures": 0.0, tag: 0.0, f"{tag} n": 0.0})
    count["pictures"] += 1
    count[tag] += bool(row["correct"])
    count[f"{tag} n"] += 1
  counts = [c | {"prompts": 1, "any": any(c[t] for t in TAGS if t in c)} for c in prompts.values()]
  return intervals.score(counts, metrics)


def metrics(sums):
  tags = [tag for tag in TAGS if f"{tag} n" in sums]
  each = {tag: intervals.ratio(sums[tag], sums[f"{tag} n"]) for tag in tags}
  right = sum(sums[tag] for tag in tags)
  return {
    "overall": sum(each.values()) / max(len(tags), 1) + 0.0 * np.asarray(right),
    **each,
    "pictures_right": intervals.ratio(right, sums["pictures"]),
    "prompts_right": intervals.ratio(sums["any"], sums["prompts"]),
  }
