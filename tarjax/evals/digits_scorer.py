"""Reads composed digits off pictures, judges pictures against prompts, and knows its own ceiling.

The scorer sees pixels only. It is fitted on the training scans, so that how well it reads held-out
handwriting (`ceiling`) bounds every score it gives. Prompts are judged as GenEval judges them
(arXiv 2310.11513), with digits for objects.
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from tarjax.data.digits import draw_any, i2t_questions, t2i_prompts
from tarjax.data.scenes import MOST, Scene, draw_scene, render, scans_of, stream
from tarjax.data.words import CATEGORIES, KINDS
from tarjax.evals.digits_reader import Box, crop, segment

CLOSE = 0.1  # share of the summed box sizes by which centres must differ to lie apart
TOWARDS = 0.5  # least part of the unit offset in the direction of a relation


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
  """One digit read off a picture: label and colour, centre, box (x0, y0, x1, y1), and certainty.

  `score` is the margin of the classifier between its first and second choice.
  """

  label: int
  colour: str
  cx: float
  cy: float
  box: Box
  score: float


class Scorer:
  """Digit reader; fits its classifier when built, in about three seconds."""

  def __init__(self, seed: int = 0, copies: int = 4):
    from sklearn.svm import SVC  # takes a second to import

    features, labels = _training_set(seed, copies)
    # The checker takes the type of gamma from its default, "scale".
    self.svm = SVC(C=10, gamma=0.05, cache_size=500)  # type: ignore[arg-type]
    self.svm.fit(features, labels)

  def read(self, image: np.ndarray) -> list[Found]:
    """Digits in a picture uint8[y x 3], the surest first.

    Raises:
      ValueError: the picture is not uint8[y x 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
      raise ValueError(f"a picture is uint8[y x 3], not {image.dtype}{list(image.shape)}")
    parts = segment(image)
    if not parts:
      return []
    crops = np.stack([crop(ink, box) for _, ink, box in parts])
    margins = self.svm.decision_function(crops)  # [parts 10]
    ordered = np.sort(margins, axis=1)
    found = []
    for (colour, _, (x0, y0, x1, y1)), row, top in zip(parts, margins, ordered, strict=True):
      label = int(self.svm.classes_[row.argmax()])
      middle = ((x0 + x1) / 2, (y0 + y1) / 2)
      found.append(Found(label, colour, *middle, (x0, y0, x1, y1), float(top[-1] - top[-2])))
    return sorted(found, key=lambda f: -f.score)


def truth(scene: Scene) -> list[Found]:
  """What a perfect reader finds in a scene: its glyphs, with their squares as boxes."""
  return [
    Found(g.label, g.colour, g.cx, g.cy, (g.x, g.y, g.x + g.size, g.y + g.size), 1.0)
    for g in scene.glyphs
  ]


def judge(found: Sequence[Found], prompt: dict) -> bool:
  """Whether a picture shows what a prompt of `t2i_prompts` names, by GenEval's rules.

  Every object must be there, in its colour where one is named. Others are ignored, except in
  counting, which wants exactly the named ones. A position is that of the surest two.

  Raises:
    ValueError: an unknown category.
  """
  if prompt["category"] not in CATEGORIES:
    raise ValueError(f"unknown category {prompt['category']!r}")
  left, chosen = list(found), []
  for wanted in prompt["objects"]:
    fits = [f for f in left if f.label == wanted["label"] and wanted["colour"] in (None, f.colour)]
    if not fits:
      return False
    chosen.append(fits[0])
    left.remove(fits[0])
  if prompt["category"] == "counting":
    return not left
  return prompt["relation"] is None or prompt["relation"] in directions(chosen[0], chosen[1])


def directions(a: Found, b: Found) -> set[str]:
  """Every side of b on which a lies: none when they are too close, two on a diagonal."""
  offset = np.array([a.cx - b.cx, a.cy - b.cy])
  sizes = np.array([box[k + 2] - box[k] for k in (0, 1) for box in (a.box, b.box)])
  apart = np.maximum(np.abs(offset) - CLOSE * sizes.reshape(2, 2).sum(1), 0) * np.sign(offset)
  dx, dy = apart / max(float(np.hypot(*offset)), 1e-6)
  sides = {"left": -dx, "right": dx, "above": -dy, "below": dy}
  return {side for side, part in sides.items() if part > TOWARDS}


def ceiling(scorer: Scorer, n: int = 200, seed: int = 0) -> dict:
  """How well the scorer reads freshly composed held-out scenes, n of each kind.

  Returns:
    "digit" and "colour": share of single digits named, and of their colours; "two" and "four":
    share of such scenes right in every detail; "t2i": {category: accuracy, "overall": mean}.
  """
  found = {}
  for count in (1, 2, 4):
    scenes = [draw_any(stream("ceiling", seed, count, i), "test", count) for i in range(n)]
    found[count] = [(truth(s), scorer.read(render(s))) for s in scenes]
  lone = [(a[0], b[0] if len(b) == 1 else None) for a, b in found[1]]
  result = {
    "digit": float(np.mean([b is not None and a.label == b.label for a, b in lone])),
    "colour": float(np.mean([b is not None and a.colour == b.colour for a, b in lone])),
    "two": float(np.mean([_same(a, b) for a, b in found[2]])),
    "four": float(np.mean([_same(a, b) for a, b in found[4]])),
  }
  verdicts = {category: [] for category in CATEGORIES}
  for i, prompt in enumerate(t2i_prompts(n * len(CATEGORIES), seed)):
    scene = scene_of(prompt, stream("ceiling", seed, "t2i", i), "test")
    verdicts[prompt["category"]].append(judge(scorer.read(render(scene)), prompt))
  return result | {"t2i": overall({k: float(np.mean(v)) for k, v in verdicts.items()})}


def scene_of(prompt: dict, rng: random.Random, split: str = "test") -> Scene:
  """A scene that shows what a prompt of `t2i_prompts` names."""
  objects = [(wanted["label"], wanted["colour"]) for wanted in prompt["objects"]]
  return draw_scene(rng, objects, prompt["relation"], split)


def overall(scores: dict[str, float]) -> dict[str, float]:
  """Adds GenEval's overall score: the mean over categories."""
  return scores | {"overall": float(np.mean(list(scores.values())))}


def _same(a: Sequence[Found], b: Sequence[Found]) -> bool:
  """Same digits in the same colours, each where it belongs."""
  left = list(b)
  for f in a:
    at = [g for g in left if max(abs(f.cx - g.cx), abs(f.cy - g.cy)) < 6]
    fits = [g for g in at if (g.label, g.colour) == (f.label, f.colour)]
    if not fits:
      return False
    left.remove(fits[0])
  return not left


def chance(n: int = 60, seed: int = 0) -> dict:
  """Scores of guessing: a true answer, but to another prompt or question of the same category.

  n of each category are paired with all others of theirs.

  Returns:
    "t2i": {category: share, "overall": mean}; "i2t": {kind: share}.
  """
  pictures = {}
  for i, prompt in enumerate(t2i_prompts(n * len(CATEGORIES), seed)):
    shown = truth(scene_of(prompt, stream("chance", seed, i)))
    pictures.setdefault(prompt["category"], []).append((prompt, shown))
  t2i = {}
  for category, pairs in pictures.items():
    hits = [
      judge(b, p) for i, (p, _) in enumerate(pairs) for j, (_, b) in enumerate(pairs) if i != j
    ]
    t2i[category] = float(np.mean(hits))
  answers = {kind: Counter() for kind in KINDS}
  for question in i2t_questions(n * len(KINDS), seed):
    answers[question["kind"]][question["answer"]] += 1
  i2t = {
    kind: sum(c * (c - 1) for c in counts.values()) / (n * (n - 1))
    for kind, counts in answers.items()
  }
  return {"t2i": overall(t2i), "i2t": i2t}


def _training_set(seed: int, copies: int) -> tuple[np.ndarray, np.ndarray]:
  """Training scans as the reader sees them: each `copies` times, at random sizes, most blurred.

  Pictures hold four scans each, to save time; a part belongs to the glyph around its centre.
  """
  pool = [(k, scan) for k in range(10) for scan in scans_of(k, "train")]
  features, labels = [], []
  for k in range(copies):
    rng = stream("scorer", seed, k)
    rng.shuffle(pool)
    for i in range(0, len(pool), MOST):
      chosen = pool[i : i + MOST]
      scene = draw_scene(rng, [(label, None) for label, _ in chosen])
      glyphs = [
        dataclasses.replace(g, scan=scan) for g, (_, scan) in zip(scene.glyphs, chosen, strict=True)
      ]
      image = render(Scene(tuple(glyphs)))
      for _, ink, box in segment(_worn(rng, image) if k else image):
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        for g in glyphs:
          if max(abs(g.cx - cx), abs(g.cy - cy)) < 4:
            features.append(crop(ink, box))
            labels.append(g.label)
  return np.stack(features), np.array(labels)


def _worn(rng: random.Random, image: np.ndarray) -> np.ndarray:
  """Blur and noise as a reconstruction has them."""
  blur = rng.uniform(0, 0.9)
  noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, 12), image.shape)
  worn = ndimage.gaussian_filter(image.astype(np.float32), (blur, blur, 0)) + noise
  return np.clip(worn, 0, 255).astype(np.uint8)
