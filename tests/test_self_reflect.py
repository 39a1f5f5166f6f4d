"""P(Yes) against a softmax written down by hand, and the choice of the best candidate."""

import json

import numpy as np
import pytest
import tiny_bundle
from PIL import Image

from tarjax import generate, self_reflect
from tarjax.config import UserError
from tarjax.data import tokens
from tarjax.pipeline import TarPipeline

PROMPTS = ["a three", "a photo of a red three left of a blue seven", "two {ones}", "a six"]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
  return TarPipeline.load(tiny_bundle.make_bundle(tmp_path_factory.mktemp("bundle")), batch=4)


@pytest.fixture(scope="module")
def words(pipe):
  """Visual words of random pictures, at scale 3."""
  return pipe.encode(noise(len(PROMPTS)), 3)


def noise(n):
  return np.random.default_rng(n).integers(0, 256, (n, 48, 48, 3), np.uint8)


def last_logits(pipe, ids):
  """After one row of ids, unpadded, by a plain forward pass: float64[v]."""
  params = {"params": pipe.params["mllm"]}
  hidden, _ = pipe.mllm.apply(params, np.asarray(ids)[None])
  logits = pipe.mllm.apply(params, hidden[:, -1:], method="logits")
  return np.asarray(logits, np.float64)[0, 0]


def share(pipe, logits):
  """Of yes in yes and no, after a softmax over all words."""
  p = np.exp(logits - logits.max())
  p /= p.sum()

  def mass(*forms):
    return p[[*{pipe.tok.encode(w, add_special_tokens=False).ids[0] for w in forms}]].sum()

  yes, no = mass("Yes", "yes", "YES"), mass("No", "no", "NO")
  return yes / (yes + no)


def by_hand(pipe, codes, text):
  """P(Yes) of one candidate, its chat written down word by word."""

  def encode(text):
    return pipe.tok.encode(text, add_special_tokens=False).ids

  start, end = pipe.tok.token_to_id("<|im_start|>"), pipe.tok.token_to_id("<|im_end|>")
  ids = [start, *encode(f"system\n{tokens.SYSTEM}"), end, *encode("\n"), start, *encode("user\n")]
  ids += [pipe.tok.token_to_id(f"<I{c}>") for c in codes]
  ids += [*encode("\n" + text), end, *encode("\n"), start, *encode("assistant\n")]
  return share(pipe, last_logits(pipe, ids))


def test_p_yes_is_the_softmax_of_a_plain_forward_pass(pipe, words):
  found = self_reflect.judge(pipe, words, PROMPTS)
  asked = [f'Does this image match the prompt "{p}"? Answer yes or no.' for p in PROMPTS]
  wanted = [by_hand(pipe, words[i], asked[i]) for i in (1, 2)]
  np.testing.assert_allclose(found[1:3], wanted, atol=1e-5)
  assert found.dtype == np.float32 and np.ptp(found) > 1e-4
  other = self_reflect.judge(pipe, words, PROMPTS, question="Is it {prompt}?")
  np.testing.assert_allclose(other[0], by_hand(pipe, words[0], "Is it a three?"), atol=1e-5)


def test_p_yes_depends_on_neither_batch_nor_company(pipe, words):
  found = self_reflect.judge(pipe, words, PROMPTS)
  alone = [
    self_reflect.judge(pipe, words[i : i + 1], PROMPTS[i : i + 1])[0] for i in range(len(PROMPTS))
  ]
  np.testing.assert_allclose(alone, found, atol=1e-6)
  twice = self_reflect.judge(pipe, [*words, *words], PROMPTS * 2)  # more than a batch
  np.testing.assert_allclose(twice, [*found, *found], atol=1e-6)


def test_pictures_are_read_again(pipe):
  shown = noise(2)
  found = self_reflect.judge(pipe, shown, PROMPTS[:2], scale=3)
  wanted = self_reflect.judge(pipe, pipe.encode(shown, 3), PROMPTS[:2])
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_prompt_with_a_picture_shows_it_too(pipe, words):
  given, prompt = noise(1), "<image> left of a six"
  found = self_reflect.judge(pipe, words[:1], [prompt], [given], scale=3)
  text = f'Does this image match the prompt "{prompt}"? Answer yes or no.'
  front, behind = text.split("<image>")
  turn = {"from": "human", "value": f"<image>\n{front}<image>{behind}"}
  codes = [words[0], pipe.encode(given, 3)[0]]
  ids = tokens.chat_prompt(pipe.tok, pipe.vocab, [turn], codes)
  assert found[0] == pytest.approx(share(pipe, last_logits(pipe, ids)), abs=1e-5)
  with pytest.raises(UserError, match="1 <image> and 0 images"):
    self_reflect.judge(pipe, words[:1], [prompt])


def test_answers_in_three_spellings(pipe):
  yes, no = self_reflect.answer_ids(pipe.tok)
  first = [pipe.tok.id_to_token(int(i))[0] for i in (*yes, *no)]
  assert set(first[: len(yes)]) == {"Y", "y"} and set(first[len(yes) :]) == {"N", "n"}

  class Alike:
    def encode(self, text, add_special_tokens):
      return type("Encoding", (), {"ids": [7, 8]})

  with pytest.raises(UserError, match="begins yes and no with one token"):
    self_reflect.answer_ids(Alike())


@pytest.mark.parametrize("feed", self_reflect.FEEDS)
def test_best_of_keeps_the_likeliest(pipe, feed):
  seeds = [5, 9]
  found = self_reflect.best_of(pipe, PROMPTS[:2], n=3, seeds=seeds, feed=feed, scale=3)
  for one, prompt, seed in zip(found, PROMPTS, seeds, strict=False):
    assert one.seeds[0] == seed and len(set(one.seeds)) == 3
    drawn = pipe.generate([prompt] * 3, scale=3, seeds=one.seeds)
    shown = [d.codes if feed == "ids" else d.image for d in drawn]
    scores = self_reflect.judge(pipe, shown, [prompt] * 3, scale=3)
    np.testing.assert_allclose(one.p_yes, scores, atol=1e-6)
    assert one.best == int(np.argmax(one.p_yes))
    np.testing.assert_array_equal(one.codes, drawn[one.best].codes)
    # painted in batches of another size, which rounds a value of the decoder now and then
    np.testing.assert_allclose(one.image.astype(int), drawn[one.best].image, atol=1)


def test_ties_go_to_the_first(pipe, monkeypatch):
  monkeypatch.setattr(self_reflect, "judge", lambda *a, **k: np.full(4, 0.5, np.float32))
  found = self_reflect.best_of(pipe, PROMPTS[:2], n=2, seeds=[1, 2], scale=3)
  assert [one.best for one in found] == [0, 0]


def test_one_candidate_is_the_plain_picture(pipe):
  (one,) = self_reflect.best_of(pipe, PROMPTS[:1], n=1, seeds=[4], scale=3)
  (plain,) = pipe.generate(PROMPTS[:1], scale=3, seeds=[4])
  np.testing.assert_array_equal(one.image, plain.image)
  assert one.best == 0 and one.p_yes.shape == (1,)


def test_seeds_of_candidates():
  a, b = self_reflect.candidate_seeds(0, 4), self_reflect.candidate_seeds(1, 4)
  assert len({*a, *b}) == 8 and a == self_reflect.candidate_seeds(0, 6)[:4]
  assert all(0 <= s < 2**32 for s in a + b)


@pytest.mark.parametrize(
  "change, said",
  [
    (dict(n=0), "best of 0"),
    (dict(feed="pixels"), "'pixels'"),
    (dict(question="Is it?"), "no {prompt}"),
    (dict(detokenizer="gan"), "'gan'"),
  ],
)
def test_what_best_of_refuses(pipe, change, said):
  with pytest.raises(UserError, match=said):
    self_reflect.best_of(pipe, PROMPTS[:1], **(dict(n=2, seeds=[0], scale=3) | change))


def test_generate_best_of(pipe, tmp_path, capsys):
  out = tmp_path / "out.png"
  argv = ["--model", str(pipe.folder), "--prompt", "a three", "--scale", "3", "--out", str(out)]
  assert generate.main([*argv, "--seed", "7", "--num", "2", "--best_of", "3"]) == 0
  found = json.loads((tmp_path / "out.json").read_text())
  assert found["best_of"] == 3 and found["judge_feed"] == "ids" and found["prompt"] == "a three"
  assert found["question"] == 'Does this image match the prompt "{prompt}"? Answer yes or no.'
  assert [p["seeds"][0] for p in found["pictures"]] == [7, 8]
  sheet = np.asarray(Image.open(out))
  for number, one in enumerate(found["pictures"]):
    assert one["chosen"] == int(np.argmax(one["p_yes"])) and len(one["p_yes"]) == 3
    (drawn,) = pipe.generate(["a three"], scale=3, seeds=[one["seeds"][one["chosen"]]])
    np.testing.assert_array_equal(sheet[:, 48 * number : 48 * (number + 1)], drawn.image)
  assert "picture 1: candidate" in capsys.readouterr().out


@pytest.mark.parametrize(
  "more, said",
  [(["--best_of", "0"], "--best_of"), (["--judge_feed", "x"], "--judge_feed must be ids")],
)
def test_generate_refuses(tmp_path, capsys, more, said):
  argv = ["--model", str(tmp_path), "--prompt", "a three", "--out", str(tmp_path / "o.png")]
  assert generate.main([*argv, *more]) == 2
  err = capsys.readouterr().err
  assert said in err and err.count("\n") == 1
