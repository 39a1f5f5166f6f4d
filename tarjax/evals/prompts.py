"""Prompts in the styles of GenEval and DPG-Bench that are none of these benchmarks' own.

They are for judgement data (`tarjax.reflect`). GenEval's prompts follow six forms, "a photo of a
bench", "a photo of two clocks" and so on; what is drawn here says the same things in words that no
such form has, so that even without case, articles and "a photo of" none of the 553 can come out.
Prompts in DPG-Bench's style, and anybody's own, are held against files of the benchmarks
(`Excluded`), by their words and by any eight words in a row.
"""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tarjax.config import UserError
from tarjax.data import words
from tarjax.data.scenes import stream
from tarjax.data.tokens import PLACEHOLDER
from tarjax.evals.geneval_rules import COLOURS, RELATIONS, TAGS
from tarjax.evals.judges import NAMES

GRAM = 8  # words in a row that no prompt shares with an excluded one
KINDS = ("photo", "photograph", "picture", "image", "drawing")  # "a ... of" says nothing more
FRAMES = ("{}", "a picture of {}", "an image of {}", "a photograph of {}")
THINGS = tuple(name for name in NAMES if name not in ("skis", "scissors"))  # these have no singular
MADE = (NAMES[13], *NAMES[24:28], *NAMES[39:46], *NAMES[56:76])  # neither alive nor to be eaten
NUMBERS = ("two", "three", "four")
PLURALS = {
  "person": "people",
  "sheep": "sheep",
  "knife": "knives",
  "computer mouse": "computer mice",
}
LOOKS = ("small", "large", "new", "old", "plain", "clean", "dusty")
BESIDE = ("next to", "beside", "together with", "in company of")
PLACED = {
  "left of": ("standing to the left of", "on the left side of"),
  "right of": ("standing to the right of", "on the right side of"),
  "above": ("placed above", "hanging above"),
  "below": ("placed below", "seen below"),
}
# fmt: off
SCENES = (
  "a quiet kitchen at dawn", "a crowded market square", "a narrow cobbled alley", "a sunlit attic",
  "an empty railway platform", "a snowy mountain village", "a greenhouse full of ferns",
  "a dim library with tall shelves", "a windy beach at low tide", "a modern office lobby",
  "a workshop with wooden benches", "a rooftop terrace above the city",
)
MATERIALS = ("wooden", "metal", "glass", "ceramic", "leather", "plastic", "stone", "woven")
SHAPES = ("round", "square", "slender", "bulky", "curved", "angular")
STATES = (
  "slightly worn at the edges", "polished until it shines", "covered with fine scratches",
  "wrapped in a thin ribbon", "still wet from the rain", "marked with a faint pattern",
)
WHERE = ("to the left of", "to the right of", "in front of", "behind", "on top of", "close to")
LIGHT = (
  "Soft light falls in from one side and throws long shadows.",
  "The whole scene lies in the warm glow of late afternoon.",
  "Cold blue light from above leaves the corners dark.",
  "A thin mist softens every outline in the distance.",
)
MEDIA = (
  "It is rendered as a detailed oil painting.", "It looks like a frame of an old film.",
  "It has the flat colours of a children's book.", "Every texture is sharp, as in a studio shot.",
)
# fmt: on


def draw(style: str, rng: random.Random, number: int) -> dict[str, Any]:
  """A prompt {"tag", "prompt", ...}; the number chooses among the style's categories in turn.

  geneval-style has the rest of GenEval's metadata, digits what `digits_scorer.judge` takes.
  """
  return STYLES[style](rng, number)


def draw_all(
  styles: Sequence[str], count: int, seed: int, excluded: "Excluded"
) -> tuple[list[dict[str, Any]], int]:
  """Different prompts, the styles in turn, and how many excluded ones were passed over.

  The first so many of a larger count are the same.

  Raises:
    UserError: the styles have not so many different prompts.
  """
  found: dict[str, dict[str, Any]] = {}
  passed, number = set(), 0
  while len(found) < count:
    style = styles[number % len(styles)]
    i = number // len(styles)
    wanted = draw(style, stream("prompts", style, seed, i), i)
    if excluded.has(wanted["prompt"]):
      passed.add(wanted["prompt"])
    else:
      found.setdefault(wanted["prompt"], wanted)
    number += 1
    if number > 100 * count + 10_000:
      raise UserError(f"{', '.join(styles)}: only {len(found)} prompts, not {count}, are different")
  return list(found.values()), len(passed)


def _geneval(rng: random.Random, number: int) -> dict[str, Any]:
  tag = TAGS[number % len(TAGS)]
  one, other = rng.sample(THINGS, 2)
  paint, second = rng.sample(COLOURS, 2)
  include: list[dict[str, Any]] = [{"class": one, "count": 1}]
  more = {}
  beside = rng.choice(BESIDE)
  if tag == "single_object":
    text = article(f"{rng.choice(LOOKS)} {one}")
  elif tag == "two_object":
    text = f"{article(one)} {beside} {article(other)}"
    include.append({"class": other, "count": 1})
  elif tag == "counting":
    count = rng.randrange(len(NUMBERS)) + 2
    text = f"{rng.choice(('exactly', 'a group of'))} {NUMBERS[count - 2]} {plural(one)}"
    include = [{"class": one, "count": count}]
    more = {"exclude": [{"class": one, "count": count + 1}]}
  elif tag == "colors":
    text = f"{article(one)} {rng.choice(('that is', 'painted', 'coloured'))} {paint}"
    include[0]["color"] = paint
  elif tag == "position":
    where = rng.choice(RELATIONS)
    text = f"{article(other)} {rng.choice(PLACED[where])} {article(one)}"
    include.append({"class": other, "count": 1, "position": [where, 0]})
  else:
    text = f"{article(f'{paint} {one}')} {beside} {article(f'{second} {other}')}"
    include[0]["color"] = paint
    include.append({"class": other, "count": 1, "color": second})
  return {"tag": tag, "prompt": rng.choice(FRAMES).format(text), "include": include} | more


def _dpg(rng: random.Random, number: int) -> dict[str, Any]:
  """Dense prompts of three or four things with their looks, places, light and medium."""
  names = rng.sample(MADE, rng.randint(3, 4))
  looks = [f"{rng.choice(SHAPES)} {rng.choice(COLOURS)} {rng.choice(MATERIALS)}" for _ in names]
  things = [f"{look} {name}" for look, name in zip(looks, names, strict=True)]
  parts = [f"The scene is {rng.choice(SCENES)} with {article(things[0])}, {rng.choice(STATES)}."]
  for before, thing in zip(names, things[1:], strict=False):
    state = f", {rng.choice(STATES)}" if rng.random() < 0.5 else ""
    parts.append(f"{article(thing).capitalize()} stands {rng.choice(WHERE)} the {before}{state}.")
  return {"tag": "dpg", "prompt": " ".join([*parts, rng.choice(LIGHT), rng.choice(MEDIA)])}


def _digits(rng: random.Random, number: int) -> dict[str, Any]:
  category = words.CATEGORIES[number % len(words.CATEGORIES)]
  return {"tag": category} | words.draw_prompt(rng, category).as_dict()


STYLES = {"geneval-style": _geneval, "dpg-style": _dpg, "digits": _digits}


def article(thing: str) -> str:
  return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def plural(thing: str) -> str:
  if thing in PLURALS:
    return PLURALS[thing]
  return thing + ("es" if thing.endswith(("s", "sh", "ch")) else "s")


def read(path: Path) -> list[dict[str, Any]]:
  """Prompts of a file: lines of text, or (.jsonl) objects with "prompt"; of a folder, its *.txt.

  Raises:
    UserError: no such file, no prompts in it, or a line that is no prompt; it is named.
  """
  try:
    if path.is_dir():
      texts = [file.read_text() for file in sorted(path.glob("*.txt"))]
      lines = [" ".join(text.split()) for text in texts]
    else:
      lines = path.read_text().splitlines()
  except (OSError, ValueError) as e:
    raise UserError(f"{path} cannot be read: {e}") from e
  found = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    row: Any = {"prompt": line.strip()}
    if path.suffix == ".jsonl":
      try:
        row = json.loads(line)
      except ValueError as e:
        raise UserError(f"line {number} of {path} is not JSON: {e}") from e
    text = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip() or PLACEHOLDER in text:
      raise UserError(f"line {number} of {path} has no prompt of words alone: {line[:80]}")
    found.append({"tag": "own"} | row)
  if not found:
    raise UserError(f"{path} has no prompts")
  return found


class Excluded:
  """Prompts that must not be used: `has` also finds them in other words of the same content."""

  def __init__(self, files: Sequence[Path] = ()):
    texts = [row["prompt"] for file in files for row in read(file)]
    self._texts = {content(text) for text in texts}
    self._grams = {gram for text in texts for gram in grams(text)}

  def __len__(self) -> int:
    return len(self._texts)

  def has(self, prompt: str) -> bool:
    return content(prompt) in self._texts or not self._grams.isdisjoint(grams(prompt))


def content(prompt: str) -> tuple[str, ...]:
  """A prompt's words without case, articles and a leading "photo of"."""
  found = [w for w in re.findall(r"\w+", prompt.lower()) if w not in ("a", "an", "the")]
  return tuple(found[2:] if found[1:2] == ["of"] and found[0] in KINDS else found)


def grams(prompt: str) -> set[tuple[str, ...]]:
  """All of `GRAM` words in a row, of the words as they stand."""
  found = re.findall(r"\w+", prompt.lower())
  return {tuple(found[i : i + GRAM]) for i in range(len(found) - GRAM + 1)}
