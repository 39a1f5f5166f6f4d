"""The evaluator: a pipeline that knows the truth scores full marks, one that knows nothing none."""

import numpy as np
import pytest

from tarjax.data import digits, words
from tarjax.data.scenes import DIGITS, render, stream
from tarjax.evals import digits as evals
from tarjax.evals.digits_scorer import Found, scene_of, truth
from tarjax.evaluate import measure
from tarjax.pipeline import Drawn

COUNT, SEED = 36, 5


class Reader:
  """Stands for `Scorer`: knows every picture that `render` made, and reads nothing in others."""

  def __init__(self, monkeypatch):
    self.known = {}

    def remember(scene):
      image = render(scene)
      self.known[image.tobytes()] = scene
      return image

    for module in ("tarjax.evals.digits", "tarjax.evals.digits_scorer", "tarjax.data.digits"):
      monkeypatch.setattr(f"{module}.render", remember)
    self.render = remember

  def read(self, image: np.ndarray) -> list[Found]:
    scene = self.known.get(image.tobytes())
    return truth(scene) if scene else []


class Pipe:
  """Stands for `TarPipeline`: answers from the truth, or (knows=False) draws noise and says no."""

  codes = 8

  def __init__(self, reader: Reader, knows: bool, dif: bool = False):
    self.reader, self.knows, self.dif = reader, knows, dif
    self.prompts = {p["prompt"]: p for p in digits.t2i_prompts(COUNT, SEED)}
    self.answers = {
      (q["image"].tobytes(), q["question"]): q["answer"]
      for q in digits.i2t_questions(COUNT, SEED, "test")
    }
    self.asked = {}

  def _noise(self, n):
    return np.random.default_rng(n).integers(0, 256, (n, 48, 48, 3), np.uint8)

  def generate(self, prompts, images=None, *, scale, seeds, temperature):
    self.asked = {"scale": scale, "seeds": seeds, "temperature": temperature}
    if not self.knows:
      return [Drawn(image, np.zeros(4, np.int32)) for image in self._noise(len(prompts))]
    scenes = [scene_of(self.prompts[p], stream(p)) for p in prompts]
    return [Drawn(self.reader.render(s), np.zeros(4, np.int32)) for s in scenes]

  def describe(self, images, questions, *, scale):
    said = []
    for image, question in zip(images, questions, strict=True):
      if not self.knows:
        said.append("maybe")
      elif question == words.DESCRIBE[0]:
        scene = self.reader.known[image.tobytes()]
        said.append(words.listing([words.name(g.label, g.colour) for g in scene.glyphs]))
      else:
        said.append(f" {self.answers[image.tobytes(), question].upper()}.")
    return said

  def encode(self, images, scale):
    ids = np.arange(len(images) * 4).reshape(-1, 4) % self.codes
    return (ids if self.knows else ids * 0).astype(np.int32)

  def features(self, images, scale):
    target = np.random.default_rng(0).normal(size=(len(images), 4, 6))
    return (target * scale if self.knows else -target), target

  def reconstruct_vqvae(self, images):
    return images if self.knows else self._noise(len(images))

  def reconstruct(self, images, scale, detokenizer="ar"):
    return self._noise(len(images)) if detokenizer == "dif" else self.reconstruct_vqvae(images)

  def reconstruct_dc_ae(self, images):
    return images

  def draw(self, codes, seeds, detokenizer):
    assert detokenizer == "dif" and len(codes) == len(seeds) == COUNT
    return self._noise(len(codes))


def run(monkeypatch, knows: bool, dif: bool = False):
  reader = Reader(monkeypatch)
  evaluator = evals.Evaluator(reader, count=COUNT, seed=SEED, scale=3, temperature=0.4)
  pipe = Pipe(reader, knows, dif)
  return measure(evaluator, pipe), evaluator, pipe


def test_truth_scores_full_marks(monkeypatch):
  scores, evaluator, pipe = run(monkeypatch, knows=True)
  assert set(scores) == {"ceiling", "chance", "t2i", "i2t", "ta_tok", "reconstruction"}
  assert scores["t2i"] == dict.fromkeys((*words.CATEGORIES, "overall"), 1.0)
  assert scores["i2t"] == dict.fromkeys((*words.KINDS, "caption"), 1.0)
  assert scores["ceiling"]["t2i"] == scores["t2i"]
  assert scores["ta_tok"]["rec_cosine"] == pytest.approx(1)
  assert scores["ta_tok"]["usage"] == 1 and scores["ta_tok"]["perplexity"] == pytest.approx(8)
  assert scores["reconstruction"]["scale2"] == {"psnr": pytest.approx(68.13, abs=0.01)} | dict(
    digit=1.0, colour=1.0
  )
  assert 0 < scores["chance"]["t2i"]["overall"] < 0.2
  assert pipe.asked["scale"] == 3 and pipe.asked["temperature"] == 0.4
  assert len(set(pipe.asked["seeds"])) == COUNT
  assert len(evaluator.drawings) == COUNT and all(d.right for d in evaluator.drawings)
  assert all(a.right for a in evaluator.answers) and len(evaluator.rebuilt) == COUNT
  assert {a.kind for a in evaluator.answers} == {*words.KINDS, "caption"}
  assert set(evaluator.rebuilt[0].versions) == {"vqvae", "scale1", "scale2", "scale3"}


def test_dif_dtok_is_scored_beside(monkeypatch):
  """Here AR-DTok draws the truth and Dif-DTok noise."""
  scores, evaluator, _ = run(monkeypatch, knows=True, dif=True)
  assert scores["t2i"]["overall"] == 1 and scores["t2i_dif"]["overall"] == 0
  assert all(d.right and d.dif and not d.dif.right for d in evaluator.drawings)
  assert scores["reconstruction"]["dc_ae"]["digit"] == 1
  assert scores["reconstruction"]["dif2"]["digit"] == 0
  assert {"dc_ae", "dif1", "dif2", "dif3"} < set(evaluator.rebuilt[0].versions)


def test_ignorance_scores_nothing(monkeypatch):
  scores, evaluator, _ = run(monkeypatch, knows=False)
  assert scores["t2i"]["overall"] == 0 and set(scores["i2t"].values()) == {0.0}
  assert scores["ta_tok"]["rec_cosine"] == pytest.approx(-1)
  assert scores["ta_tok"]["usage"] == 1 / 8 and scores["ta_tok"]["perplexity"] == pytest.approx(1)
  assert scores["reconstruction"]["vqvae"]["digit"] == 0
  assert scores["reconstruction"]["vqvae"]["psnr"] < 12
  assert scores["reconstruction"]["original"] == {"digit": 1.0, "colour": 1.0}
  assert {d.read for d in evaluator.drawings} == {"nothing"}
  assert not any(a.right for a in evaluator.answers)


def test_too_few_prompts_are_refused():
  with pytest.raises(ValueError, match="count=11"):
    evals.Evaluator(None, count=11)


def test_answers_are_compared_as_people_mean_them():
  assert evals.plain(" Three. ") == evals.plain("3") == "three"
  assert evals.plain("thirteen") != "three" and evals.plain("13") == "13"


def test_captions_count_every_digit():
  assert evals.named("A red three and a blue 7.") == [("blue", 7), ("red", 3)]
  assert evals.named("a red three, a red three and a red thirteen") == [("red", 3)] * 2
  assert evals.named("three digits") == []


def test_a_digit_counts_only_in_its_place(monkeypatch):
  scene = digits.draw_any(stream("place"), "test", 1)
  glyph = truth(scene)[0]

  class Shifted:
    def __init__(self, by, label=glyph.label):
      self.found = Found(label, glyph.colour, glyph.cx + by, glyph.cy, glyph.box, 1.0)

    def read(self, image):
      return [self.found]

  def compare(reader):
    return evals.Evaluator(reader, count=12)._compare(scene, render(scene))

  assert compare(Shifted(0)) == [(True, True)]
  assert compare(Shifted(evals.NEAR + 1)) == [(False, False)]
  assert compare(Shifted(0, (glyph.label + 1) % 10)) == [(False, True)]
  assert DIGITS[glyph.label] in evals.said_of(Shifted(0).read(None))
