"""What is said about a scene: prompts in GenEval's categories, captions, questions and answers.

Every function is a pure function of its arguments; `rng` picks the wording. Labels and colours are
those of `tarjax.data.scenes`.
"""

import dataclasses
import random

from tarjax.data.scenes import COLOURS, DIGITS, RELATIONS, Glyph, Scene, relation

CATEGORIES = (
  "single_object",
  "two_objects",
  "counting",
  "colours",
  "position",
  "colour_attribution",
)
COLOURED = 0.75  # share of yes/no questions that name a colour
KINDS = ("digit", "colour", "yesno", "count", "relation")  # of questions

SIMILAR = "Generate an image similar to <image>"  # paper Sec. 3.4
NUMERAL = 0.06  # share of prompts that write 3 for three; training only
FRAMES = ("{}", "{}", "{}", "a photo of {}", "a picture of {}", "an image of {}", "draw {}")
DESCRIBE = (
  "Describe the image.",
  "What is in the image?",
  "Please describe this picture.",
  "Write a caption for this image.",
)
PLACES = {
  "left": ("left of", "to the left of"),
  "right": ("right of", "to the right of"),
  "above": ("above", "over"),
  "below": ("below", "under"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
  """A prompt and what a picture must show: objects (label, colour or None for any).

  `relation` says where objects[0] lies as seen from objects[1], or is None.
  """

  category: str
  text: str
  objects: tuple[tuple[int, str | None], ...]
  relation: str | None = None

  def as_dict(self) -> dict:
    """{"category", "prompt", "objects": [{"label", "colour"}, ...], "relation"}, ready for JSON."""
    objects = [{"label": label, "colour": colour} for label, colour in self.objects]
    return {
      "category": self.category,
      "prompt": self.text,
      "objects": objects,
      "relation": self.relation,
    }


def name(label: int, colour: str | None = None, numeral: bool = False) -> str:
  """(8, None) -> "an eight"; (3, "red") -> "a red three", or "a red 3" as a numeral."""
  word = str(label) if numeral else DIGITS[label]
  if colour:
    return f"a {colour} {word}"
  return f"an {word}" if label == 8 else f"a {word}"


def plural(label: int) -> str:
  return DIGITS[label] + ("es" if label == 6 else "s")


def listing(parts: list[str]) -> str:
  """["a", "b", "c"] -> "a, b and c"."""
  return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def draw_prompt(rng: random.Random, category: str, training: bool = True) -> Prompt:
  """A random prompt of one category.

  In training a position prompt names colours half of the time, and some prompts write numerals.

  Raises:
    ValueError: an unknown category.
  """
  if category not in CATEGORIES:
    raise ValueError(f"unknown category {category!r}; the categories are {list(CATEGORIES)}")
  first, second = rng.sample(range(10), 2)
  ink, other = rng.sample(tuple(COLOURS), 2)
  numeral = training and rng.random() < NUMERAL
  where = None
  if category == "counting":
    return _counting(rng, first)
  if category in ("single_object", "colours"):
    objects = [(first, ink if category == "colours" else None)]
  elif category == "position":
    coloured = training and rng.random() < 0.5
    second_ink = rng.choice((ink, other, other, other))  # now and then the same
    objects = [(first, ink), (second, second_ink)] if coloured else [(first, None), (second, None)]
    where = rng.choice(RELATIONS)
  else:
    named = category == "colour_attribution"
    objects = [(first, ink if named else None), (second, other if named else None)]
  parts = [name(label, colour, numeral) for label, colour in objects]
  text = f"{parts[0]} {rng.choice(PLACES[where])} {parts[1]}" if where else listing(parts)
  return Prompt(category, rng.choice(FRAMES).format(text), tuple(objects), where)


def _counting(rng: random.Random, label: int) -> Prompt:
  count = rng.randint(2, 4)
  forms = (
    f"{DIGITS[count]} copies of the digit {DIGITS[label]}",
    f"{DIGITS[count]} {plural(label)}",
  )
  text = rng.choice(FRAMES).format(rng.choice(forms))
  return Prompt("counting", text, ((label, None),) * count)


def in_order(scene: Scene) -> list[Glyph]:
  """Glyphs as one reads: from the top, and in a row from the left."""
  return sorted(scene.glyphs, key=lambda g: (g.y, g.x))


def caption(rng: random.Random, scene: Scene) -> str:
  """Names every digit with its colour; of two digits also where they stand."""
  glyphs = in_order(scene)
  parts = [name(g.label, g.colour) for g in glyphs]
  if len(glyphs) == 2 and rng.random() < 0.75:
    a, b = rng.sample((0, 1), 2)
    where = relation(glyphs[a], glyphs[b])
    if where:
      return f"{parts[a]} {PLACES[where][0]} {parts[b]}"
  return listing(parts)


def ask(
  rng: random.Random,
  kind: str,
  scene: Scene,
  positive: bool | None = None,
  coloured: float = COLOURED,
) -> tuple[str, str] | None:
  """A question of one kind with its short answer, or None when the scene does not support it.

  `positive` fixes the answer of a yes/no question; left out, it is a fair coin. `coloured` is the
  share of these that name a colour.

  Raises:
    ValueError: an unknown kind.
  """
  if kind == "digit":
    return _ask_digit(rng, scene)
  if kind == "colour":
    return _ask_colour(rng, scene)
  if kind == "yesno":
    return _ask_yesno(rng, scene, rng.random() < 0.5 if positive is None else positive, coloured)
  if kind == "count":
    forms = ("How many digits are there?", "How many digits are in the image?", "Count the digits.")
    return rng.choice(forms), DIGITS[len(scene.glyphs)]
  if kind == "relation":
    return _ask_relation(rng, scene)
  raise ValueError(f"unknown kind of question {kind!r}; the kinds are {list(KINDS)}")


def _ask_digit(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
  if len(scene.glyphs) == 1:
    forms = ("Which digit is it?", "Which digit is in the image?", "What digit is this?")
    return rng.choice(forms), DIGITS[scene.glyphs[0].label]
  inks = [g.colour for g in scene.glyphs]
  once = [g for g in scene.glyphs if inks.count(g.colour) == 1]
  if not once:
    return None
  glyph = rng.choice(once)
  forms = (f"Which digit is {glyph.colour}?", f"What is the {glyph.colour} digit?")
  return rng.choice(forms), DIGITS[glyph.label]


def _ask_colour(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
  labels = [g.label for g in scene.glyphs]
  once = [g for g in scene.glyphs if labels.count(g.label) == 1]
  if not once:
    return None
  glyph = rng.choice(once)
  noun = "digit" if len(labels) == 1 and rng.random() < 0.5 else DIGITS[glyph.label]
  return rng.choice((f"What colour is the {noun}?", f"Which colour is the {noun}?")), glyph.colour


def _ask_yesno(rng: random.Random, scene: Scene, positive: bool, share: float) -> tuple[str, str]:
  """As POPE. Of the noes at a share of COLOURED, half keep the digit and change its colour, half
  name an absent digit; at a smaller share more do the latter.
  """
  glyph = rng.choice(scene.glyphs)
  label, colour = glyph.label, glyph.colour
  coloured = rng.random() < share
  if not positive:
    if coloured and rng.random() < 0.5 / COLOURED:
      taken = {g.colour for g in scene.glyphs if g.label == label}
      colour = rng.choice([c for c in COLOURS if c not in taken])
    else:
      taken = {g.label for g in scene.glyphs}
      label = rng.choice([k for k in range(10) if k not in taken])
  thing = name(label, colour if coloured else None)
  form = rng.choice(("Is there {} in the image?", "Is there {} in the picture?", "Is there {}?"))
  return form.format(thing), "yes" if positive else "no"


def _ask_relation(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
  """What stands on one side of a digit that occurs once, where exactly one digit can be meant."""
  labels = [g.label for g in scene.glyphs]
  found = []
  for anchor in scene.glyphs:
    if labels.count(anchor.label) > 1:
      continue
    sides = [(relation(g, anchor), g) for g in scene.glyphs if g is not anchor]
    if any(side is None for side, _ in sides):
      continue
    for where in RELATIONS:
      there = [g for side, g in sides if side == where]
      found += [(where, anchor, there[0])] if len(there) == 1 else []
  if not found:
    return None
  where, anchor, answer = rng.choice(found)
  form = rng.choice(("What is {} the {}?", "Which digit is {} the {}?"))
  return form.format(PLACES[where][0], DIGITS[anchor.label]), DIGITS[answer.label]
