"""Scores of a Tar bundle on composed digits, with the scorer's ceiling and with chance beside them.

Pictures are drawn from prompts with held-out seeds and read by `Scorer`; questions are asked about
held-out handwriting. Values are shares in [0, 1] unless named psnr, perplexity or rec_cosine:

    t2i/<category>, t2i/overall                GenEval's six categories, and their mean
    i2t/digit colour yesno count relation caption
    ta_tok/usage perplexity rec_cosine         over all scales; ta_tok/scale<s>/... of each
    t2i_dif/...                                the same words, drawn by Dif-DTok, if it is there
    reconstruction/<what>/psnr digit colour    what: original, vqvae, scale1, scale2, scale3; with
                                               Dif-DTok also dc_ae, dif1, dif2, dif3
    ceiling/...   the scorer on true pictures of the same prompts, and on freshly composed scenes
    chance/...    the picture, or the answer, that belongs to another prompt of the category
    ceiling/scenes/digit colour two four       one digit, its colour, whole scenes of two and four
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tarjax.data import digits, words
from tarjax.data.scenes import COLOURS, DIGITS, Scene, render, stream
from tarjax.evals import digits_scorer, pictures

SCALES = (1, 2, 3)
PARTS = ("bounds", "t2i", "i2t", "ta_tok", "reconstruction")
NEAR = 8.0  # a digit that is read this many pixels off still counts as the one painted there
ASSIGNMENTS = 1 << 16  # codes over which usage and perplexity are counted
MAX_RECONSTRUCTIONS = 64


@dataclasses.dataclass(frozen=True)
class Drawing:
  """A picture drawn from a prompt, and what the scorer read in it; `dif` is Dif-DTok's."""

  category: str
  prompt: str
  image: np.ndarray
  read: str
  right: bool
  dif: "Drawing | None" = None


@dataclasses.dataclass(frozen=True)
class Answer:
  """A question about a picture; kind "caption" asks for a description."""

  kind: str
  question: str
  image: np.ndarray
  expected: str
  said: str
  right: bool


@dataclasses.dataclass(frozen=True)
class Rebuilt:
  """A picture and its reconstructions; `versions` has the keys of reconstruction/ above."""

  original: np.ndarray
  versions: dict[str, np.ndarray]


class Evaluator:
  """`run(pipe)` yields (name, value) as listed above and fills the three lists of samples.

  Args:
    scorer: an `evals.digits_scorer.Scorer`; `read(image) -> list of Found`.
    count: prompts, and as many questions.
    seed: of prompts, questions and sampling; training never draws from these streams.
    scale: pool scale of the visual words that pictures are drawn through; None where words have
      none and TA-Tok is not measured.
    temperature: of the visual words; None is the pipeline's own.
    draw: what draws in the place of `pipe.generate`, with its arguments.
    parts: of `PARTS`; bounds are ceiling and chance.
  """

  def __init__(
    self,
    scorer,
    *,
    count: int = 600,
    seed: int = 12345,
    scale: int | None = 2,
    temperature: float | None = None,
    draw: Callable[..., Sequence] | None = None,
    parts: Sequence[str] = PARTS,
  ):
    if unknown := sorted(set(parts) - set(PARTS)):
      raise ValueError(f"digits have no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    if count < 2 * len(words.CATEGORIES):
      raise ValueError(f"count={count} is too few: two prompts of each of six categories")
    self.scorer, self.count, self.seed = scorer, count, seed
    self.scale, self.temperature, self.draw, self.parts = scale, temperature, draw, parts
    self._empty()

  def _empty(self) -> None:
    self.drawings: list[Drawing] = []
    self.answers: list[Answer] = []
    self.rebuilt: list[Rebuilt] = []

  def run(self, pipe) -> Iterator[tuple[str, float]]:
    """Everything that can be measured on a `TarPipeline`."""
    self._empty()
    measure = {
      "bounds": lambda _: self._bounds(),
      "t2i": self._t2i,
      "i2t": self._i2t,
      "ta_tok": self._ta_tok,
      "reconstruction": self._reconstruction,
    }
    for part in PARTS:
      if part in self.parts:
        yield from measure[part](pipe)

  def _bounds(self) -> Iterator[tuple[str, float]]:
    """The scorer on true pictures of the same prompts, and guessing."""
    each = self.count // len(words.CATEGORIES)
    ceiling = digits_scorer.ceiling(self.scorer, each, self.seed)
    for category, value in ceiling.pop("t2i").items():
      yield f"ceiling/t2i/{category}", value
    for kind in ("digit", "colour"):
      yield f"ceiling/i2t/{kind}", ceiling[kind]
    for name, value in ceiling.items():
      yield f"ceiling/scenes/{name}", value
    for group, values in digits_scorer.chance(min(each, 60), self.seed).items():
      for name, value in values.items():
        yield f"chance/{group}/{name}", value

  def _t2i(self, pipe) -> Iterator[tuple[str, float]]:
    prompts = digits.t2i_prompts(self.count, self.seed)
    drawn = (self.draw or pipe.generate)(
      [p["prompt"] for p in prompts],
      scale=self.scale,
      seeds=[self.seed + i for i in range(len(prompts))],
      temperature=self.temperature,
    )
    seen = [self._judged(p, d.image) for p, d in zip(prompts, drawn, strict=True)]
    if pipe.dif:
      codes = np.stack([d.codes for d in drawn])
      seeds = [self.seed + i for i in range(len(prompts))]
      images = pipe.draw(codes, seeds, "dif")
      others = [self._judged(p, image) for p, image in zip(prompts, images, strict=True)]
      seen = [dataclasses.replace(a, dif=b) for a, b in zip(seen, others, strict=True)]
      yield from shares("t2i_dif", others)
    self.drawings += seen
    yield from shares("t2i", seen)

  def _judged(self, prompt: dict, image: np.ndarray) -> Drawing:
    found = self.scorer.read(image)
    right = digits_scorer.judge(found, prompt)
    return Drawing(prompt["category"], prompt["prompt"], image, said_of(found), right)

  def _i2t(self, pipe) -> Iterator[tuple[str, float]]:
    asked = digits.i2t_questions(self.count, self.seed, "test")
    images, questions = [q["image"] for q in asked], [q["question"] for q in asked]
    said = pipe.describe(images, questions, scale=self.scale)
    for q, text in zip(asked, said, strict=True):
      right = plain(text) == plain(q["answer"])
      self.answers.append(
        Answer(q["kind"], q["question"], q["image"], q["answer"], text.strip(), right)
      )
    self._captions(pipe, max(self.count // 6, 1))
    for kind in (*words.KINDS, "caption"):
      yield f"i2t/{kind}", _mean([a.right for a in self.answers if a.kind == kind])

  def _captions(self, pipe, count: int) -> None:
    """Descriptions; right when they name exactly the digits of the picture in their colours."""
    scenes = [self._scene("captions", i) for i in range(count)]
    images, question = [render(s) for s in scenes], words.DESCRIBE[0]
    said = pipe.describe(images, [question] * count, scale=self.scale)
    for i, (scene, image, text) in enumerate(zip(scenes, images, said, strict=True)):
      expected = words.caption(self._rng("wording", i), scene)
      right = named(text) == sorted((g.colour, g.label) for g in scene.glyphs)
      self.answers.append(Answer("caption", question, image, expected, text.strip(), right))

  def _ta_tok(self, pipe) -> Iterator[tuple[str, float]]:
    """Codes in use on held-out pictures, and how close the features come back."""
    if self.scale is None:
      return
    count = self.count if self.count < 300 else 384  # 384 x (144 + 36 + 16) codes > ASSIGNMENTS
    images = np.stack([render(self._scene("ta_tok", i)) for i in range(count)])
    codes, cosines = [], []
    for scale in SCALES:
      ids = np.asarray(pipe.encode(images, scale)).ravel()
      cosine = pictures.cosine(*pipe.features(images, scale))
      yield f"ta_tok/scale{scale}/rec_cosine", cosine
      for name, value in pictures.spread(ids, pipe.codes).items():
        yield f"ta_tok/scale{scale}/{name}", value
      codes.append(ids)
      cosines.append(cosine)
    for name, value in pictures.spread(np.concatenate(codes)[:ASSIGNMENTS], pipe.codes).items():
      yield f"ta_tok/{name}", value
    yield "ta_tok/rec_cosine", _mean(cosines)

  def _reconstruction(self, pipe) -> Iterator[tuple[str, float]]:
    """Held-out pictures through the VQVAE or DC-AE alone, and through TA-Tok and a de-tokenizer."""
    count = min(self.count, MAX_RECONSTRUCTIONS)
    scenes = [self._scene("reconstruction", i) for i in range(count)]
    originals = np.stack([render(s) for s in scenes])
    if self.scale is None and pipe.vqvae is None:
      versions = {"unitok": pipe.reconstruct(originals, None)}
    else:
      versions = {"vqvae": np.asarray(pipe.reconstruct_vqvae(originals))}
    for scale in SCALES if self.scale else ():
      versions[f"scale{scale}"] = np.asarray(pipe.reconstruct(originals, scale))
    if pipe.dif:
      versions["dc_ae"] = np.asarray(pipe.reconstruct_dc_ae(originals))
      for scale in SCALES:
        drawn = pipe.reconstruct(originals, scale, detokenizer="dif")
        versions[f"dif{scale}"] = np.asarray(drawn)
    for i, image in enumerate(originals):
      self.rebuilt.append(Rebuilt(image, {name: v[i] for name, v in versions.items()}))
    for name, images in ({"original": originals} | versions).items():
      if name != "original":
        yield f"reconstruction/{name}/psnr", _mean(pictures.psnr(originals, images))
      pairs = [self._compare(s, image) for s, image in zip(scenes, images, strict=True)]
      kept = np.array([pair for picture in pairs for pair in picture])
      yield f"reconstruction/{name}/digit", _mean(kept[:, 0])
      yield f"reconstruction/{name}/colour", _mean(kept[:, 1])

  def _compare(self, scene: Scene, image: np.ndarray) -> list[tuple[bool, bool]]:
    """For each digit of the scene: whether the scorer reads it, and its colour, at its place."""
    found, pairs = self.scorer.read(image), []
    for g in scene.glyphs:
      near = [f for f in found if max(abs(f.cx - g.cx), abs(f.cy - g.cy)) <= NEAR]
      best = min(near, key=lambda f: abs(f.cx - g.cx) + abs(f.cy - g.cy), default=None)
      pairs.append(
        (best is not None and best.label == g.label, best is not None and best.colour == g.colour)
      )
    return pairs

  def _rng(self, name: str, i: int):
    return stream("evals.digits", name, self.seed, i)

  def _scene(self, name: str, i: int) -> Scene:
    return digits.draw_any(self._rng(name, i), "test")


def shares(group: str, drawings: Sequence[Drawing]) -> Iterator[tuple[str, float]]:
  """The share of right pictures in each category, and their mean, as "group/category"."""
  found = {}
  for category in words.CATEGORIES:
    found[category] = _mean([d.right for d in drawings if d.category == category])
  for category, value in digits_scorer.overall(found).items():
    yield f"{group}/{category}", value


def plain(text: str) -> str:
  """Answers are compared without case, outer space, a final stop, and with numerals as words."""
  text = text.strip().lower().rstrip(".").strip()
  return DIGITS[int(text)] if re.fullmatch(r"[0-9]", text) else text


def named(text: str) -> list[tuple[str, int]]:
  """(colour, label) of every "red three" in a text, sorted."""
  labels = {word: i for i, word in enumerate(DIGITS)} | {str(i): i for i in range(10)}
  pattern = rf"\b({'|'.join(COLOURS)}) ({'|'.join(labels)})\b"
  return sorted((colour, labels[word]) for colour, word in re.findall(pattern, text.lower()))


def said_of(found: Sequence) -> str:
  """What a scorer read, in words: "red three, blue seven" from left to right."""
  parts = [f"{f.colour} {DIGITS[f.label]}" for f in sorted(found, key=lambda f: f.cx)]
  return ", ".join(parts) or "nothing"


def _mean(values) -> float:
  return float(np.mean(values)) if len(values) else 0.0
