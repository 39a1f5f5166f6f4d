"""Composed digits: every task of the paper on handwriting that scikit-learn carries.

`Digits` is an endless random-access source of records in the general format: {"id", "source",
"task", "conversations", "images"}, with one <image> placeholder per image. Sample i is a pure
function of (task, split, seed, i). `t2i_prompts` and `i2t_questions` are the evaluation sets.

    t2i      "a red three left of a blue seven" -> <image>
    i2t      <image> and two to six questions -> short answers, or a caption
    i2i      "Generate an image similar to <image>" -> <image>
    ti2i     "<image> left of a blue seven" -> <image>
    text     questions about Python and about digits -> answers
    caption  <image> -> caption; the pairs of the encoder, also under "caption", and what stands
             in each square of 8 pixels under "regions" (see `scenes.regions`)
    image    the same pictures as caption, from a stream of their own
"""

import random

from tarjax.data import english, words
from tarjax.data.scenes import (
  COLOURS,
  RELATIONS,
  SPLITS,
  Scene,
  draw_scene,
  regions,
  render,
  stream,
  vary,
)

COUNTS = (0.34, 0.64, 0.82, 1.0)  # cumulative shares of scenes with one to four digits
ALIKE = 0.15  # share of scenes of several digits whose digits are all the same
SCENE_PROMPTS = 0.06  # share of text-to-image prompts that are captions of three or four digits
REGION = 8  # side of the squares whose contents "regions" of a caption names, in pixels
SHARES = (1, 1, 2, 2, 2, 3)  # of the categories of prompts in training
CAPTIONED = 0.15  # share of i2t records that ask for a caption
POLLED = 0.55  # share of i2t records that ask yes/no only: one bit each, so there are many
POLLS = 6  # of them, as POPE asks of a picture
# Share of those that name a colour. With the test's, .75, colours alone answer most of them, and a
# run may never learn to look for the digit.
POLLED_COLOURS = 0.4


def record(turns: list[tuple[str, str]], images: list) -> dict:
  """Turns (user, assistant) and images uint8[y x 3] as the fields of a record."""
  conversations = []
  for user, assistant in turns:
    conversations.append({"from": "human", "value": user})
    conversations.append({"from": "gpt", "value": assistant})
  return {"conversations": conversations, "images": images}


def draw_any(rng: random.Random, split: str, count: int | None = None) -> Scene:
  """A scene of `count` digits, or of one to four, with nothing else prescribed."""
  if count is None:
    at = rng.random()
    count = 1 + sum(at >= share for share in COUNTS[:-1])
  labels = [rng.randrange(10)] * count
  if rng.random() >= ALIKE:
    labels = [rng.randrange(10) for _ in labels]
  return draw_scene(rng, [(label, None) for label in labels], None, split)


def _t2i(rng: random.Random, split: str) -> dict:
  if rng.random() < SCENE_PROMPTS:
    scene = draw_any(rng, split, rng.choice((3, 4)))
    return record([(words.caption(rng, scene), "<image>")], [render(scene)])
  category = rng.choices(words.CATEGORIES, SHARES)[0]
  prompt = words.draw_prompt(rng, category)
  scene = draw_scene(rng, prompt.objects, prompt.relation, split)
  return record([(prompt.text, "<image>")], [render(scene)]) | {"meta": prompt.as_dict()}


def _i2t(rng: random.Random, split: str) -> dict:
  scene, form = draw_any(rng, split), rng.random()
  if form < CAPTIONED:
    turns = [(rng.choice(words.DESCRIBE), words.caption(rng, scene))]
  elif form < CAPTIONED + POLLED:
    polls = (words.ask(rng, "yesno", scene, coloured=POLLED_COLOURS) for _ in range(POLLS))
    turns = [turn for turn in polls if turn]
  else:
    kinds = rng.sample(words.KINDS, len(words.KINDS))
    turns = [turn for kind in kinds if (turn := words.ask(rng, kind, scene))][: rng.randint(2, 5)]
  turns[0] = (f"<image>\n{turns[0][0]}", turns[0][1])
  return record(turns, [render(scene)])


def _i2i(rng: random.Random, split: str) -> dict:
  scene = draw_any(rng, split)
  images = [render(scene), render(vary(rng, scene, split))]
  return record([(words.SIMILAR, "<image>")], images)


def _ti2i(rng: random.Random, split: str) -> dict:
  """A single digit in, the same digit with company or in another colour out."""
  (kept, other), (ink, second) = rng.sample(range(10), 2), rng.choices(tuple(COLOURS), k=2)
  scene = draw_scene(rng, [(kept, ink)], None, split)
  where, thing = rng.choice((*RELATIONS, None)), words.name(other, second)
  form = rng.randrange(8)
  if form == 0:
    colour = rng.choice([c for c in COLOURS if c != ink])
    text, answer = f"<image> in {colour}", draw_scene(rng, [(kept, colour)], None, split)
  elif where is None:
    answer = draw_scene(rng, [(kept, ink), (other, second)], None, split)
    text = f"<image> and {thing}" if form < 5 else f"{thing} and <image>"
  else:
    answer = draw_scene(rng, [(kept, ink), (other, second)], where, split)
    place = rng.choice(words.PLACES[where])
    back = rng.choice(words.PLACES[words.OPPOSITE[where]])
    text = f"<image> {place} {thing}" if form < 5 else f"{thing} {back} <image>"
  return record([(text, "<image>")], [render(scene), render(answer)])


def _text(rng: random.Random, split: str) -> dict:
  return record([english.exchange(rng)], [])


def _caption(rng: random.Random, split: str) -> dict:
  scene = draw_any(rng, split)
  caption = words.caption(rng, scene)
  turns = [(f"<image>\n{rng.choice(words.DESCRIBE)}", caption)]
  named = {"caption": caption, "regions": regions(scene, REGION)}
  return record(turns, [render(scene)]) | named


MAKERS = {
  "t2i": _t2i,
  "i2t": _i2t,
  "i2i": _i2i,
  "ti2i": _ti2i,
  "text": _text,
  "caption": _caption,
  "image": _caption,
}
TASKS = tuple(MAKERS)


class Digits:
  """Random-access source of composed digits.

  Args:
    task: a key of `MAKERS`.
    split: whose handwriting, "train" or "test".
    seed: of the stream; sample i depends on (task, split, seed, i) alone.
    length: what `len` says.

  Raises:
    ValueError: an unknown task or split, or a length below one.
  """

  def __init__(self, task: str, split: str = "train", seed: int = 0, length: int = 1 << 31):
    if task not in TASKS:
      raise ValueError(f"unknown task {task!r}; the tasks are {list(TASKS)}")
    if split not in SPLITS:
      raise ValueError(f"unknown split {split!r}; the splits are {list(SPLITS)}")
    if length < 1:
      raise ValueError(f"length must be at least 1, not {length}")
    self.task, self.split, self.seed, self.length = task, split, seed, length
    if task == "text":  # before there are threads: Python 3.11 fails when two parse at once
      english.summaries()

  def __len__(self) -> int:
    return self.length

  def where(self, i: int) -> tuple[str, int, str]:
    return "digits", int(i), "record"

  def __getitem__(self, i: int) -> dict:
    """Record i: images are uint8[48 48 3].

    Raises:
      IndexError: i outside [0, length).
    """
    i = int(i)
    if not 0 <= i < self.length:
      raise IndexError(f"sample {i} of a source of {self.length}")
    rng = stream("digits", self.task, self.split, self.seed, i)
    task = "i2t" if self.task in ("caption", "image") else self.task
    name = f"digits/{self.task}/{self.split}/{self.seed}/{i}"
    return {"id": name, "source": "digits", "task": task} | MAKERS[self.task](rng, self.split)


def t2i_prompts(n: int, seed: int = 0) -> list[dict]:
  """n evaluation prompts, the six categories in turn: see `words.Prompt.as_dict`."""
  prompts = []
  for i in range(n):
    rng = stream("t2i_prompts", seed, i)
    category = words.CATEGORIES[i % len(words.CATEGORIES)]
    prompts.append(words.draw_prompt(rng, category, training=False).as_dict())
  return prompts


def i2t_questions(n: int, seed: int = 0, split: str = "test") -> list[dict]:
  """n evaluation questions on held-out handwriting, the five kinds in turn.

  Digits and colours are asked of a single digit, relations of two, the others of one to four; every
  other yes/no question has the answer yes.

  Returns:
    {"kind", "image": uint8[48 48 3], "question", "answer"} each.
  """
  counts = {"digit": 1, "colour": 1, "relation": 2}
  questions = []
  for i in range(n):
    rng, kind = stream("i2t_questions", seed, i), words.KINDS[i % len(words.KINDS)]
    turn = None
    while turn is None:  # a relation between two equal digits cannot be asked
      scene = draw_any(rng, split, counts.get(kind, rng.randint(1, 4)))
      turn = words.ask(rng, kind, scene, positive=i // len(words.KINDS) % 2 == 0)
    questions.append({"kind": kind, "image": render(scene), "question": turn[0], "answer": turn[1]})
  return questions


def text_documents(seed: int = 0, count: int = 12_000) -> list[str]:
  """Documents for a language model, about 1.4 MB: docstrings, then `count` prompts and answers.

  They are words only, from streams that no picture is drawn from, and the same on every call.
  """
  documents = list(english.docstrings().values())
  for i in range(count):
    rng = stream("text_documents", seed, i)
    scene = draw_any(rng, "train")
    if i % 3 == 0:
      documents.append(words.caption(rng, scene))
    elif i % 3 == 1:
      documents.append(words.draw_prompt(rng, rng.choice(words.CATEGORIES)).text)
    else:
      turn = words.ask(rng, rng.choice(words.KINDS), scene) if i % 2 else english.exchange(rng)
      documents.append("\n".join(turn or english.fact(rng)))
  return documents
