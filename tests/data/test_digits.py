"""Records of every task, their purity, and the evaluation sets."""

import concurrent.futures
import multiprocessing
import pickle

import numpy as np
import pytest

from tarjax.data import english, words
from tarjax.data.digits import TASKS, Digits, draw_any, i2t_questions, t2i_prompts, text_documents
from tarjax.data.scenes import COLOURS, DIGITS, stream
from tarjax.evals.digits_scorer import judge, scene_of, truth

IMAGES = {"t2i": 1, "i2t": 1, "i2i": 2, "ti2i": 2, "text": 0, "caption": 1, "image": 1}


def digest(task, i):
  record = Digits(task, seed=3)[i]
  return pickle.dumps((record["conversations"], [x.tobytes() for x in record["images"]]))


@pytest.mark.parametrize("task", TASKS)
def test_records_are_valid(task):
  source = Digits(task, length=300)
  for i in range(len(source)):
    record = source[i]
    turns = record["conversations"]
    assert record["task"] == ("i2t" if task in ("caption", "image") else task)
    assert [t["from"] for t in turns] == ["human", "gpt"] * (len(turns) // 2) and turns
    assert all(t["value"].strip() for t in turns)
    assert sum(t["value"].count("<image>") for t in turns) == len(record["images"]) == IMAGES[task]
    assert all(x.shape == (48, 48, 3) and x.dtype == np.uint8 for x in record["images"])
    assert "<image>" not in turns[0]["value"] or task != "t2i"
  assert len({source[i]["id"] for i in range(100)}) == 100


def test_sample_depends_on_its_index_alone():
  here = [digest(task, i) for task in TASKS for i in (7, 2**31 - 1)]
  arguments = [(task, i) for task in TASKS for i in (7, 2**31 - 1)]
  for i in (1, 9, 4):
    digest("i2i", i)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert list(pool.map(lambda a: digest(*a), arguments)) == here
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
    assert list(pool.map(digest, *zip(*arguments, strict=True))) == here


def test_seeds_splits_and_tasks_have_streams_of_their_own():
  sources = [Digits("image"), Digits("image", seed=1), Digits("image", "test"), Digits("caption")]
  pictures = {source[i]["images"][0].tobytes() for source in sources for i in range(20)}
  assert len(pictures) == 80


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match="unknown task 't2v'"):
    Digits("t2v")
  with pytest.raises(ValueError, match="unknown split 'val'"):
    Digits("t2i", "val")
  with pytest.raises(ValueError, match="at least 1"):
    Digits("t2i", length=0)
  for i in (-1, 5):
    with pytest.raises(IndexError, match=f"sample {i} of a source of 5"):
      Digits("t2i", length=5)[i]


@pytest.mark.parametrize("training", [True, False])
def test_composed_scenes_show_what_prompts_name(training):
  for i in range(1200):
    rng = stream("prompts", i)
    prompt = words.draw_prompt(rng, words.CATEGORIES[i % 6], training).as_dict()
    scene = scene_of(prompt, rng, "train")
    assert len(scene.glyphs) == len(prompt["objects"])
    assert judge(truth(scene), prompt), prompt


def test_text_to_image_prompts_cover_the_categories_and_the_coloured_position():
  source, seen, coloured = Digits("t2i"), set(), 0
  for i in range(400):
    meta = source[i].get("meta")
    if meta:
      seen.add(meta["category"])
      coloured += meta["category"] == "position" and meta["objects"][0]["colour"] is not None
  assert seen == set(words.CATEGORIES) and coloured > 10


def test_evaluation_prompts_are_balanced_and_repeatable():
  prompts = t2i_prompts(60, seed=5)
  assert prompts == t2i_prompts(60, seed=5) and prompts != t2i_prompts(60, seed=6)
  categories = [p["category"] for p in prompts]
  assert all(categories.count(c) == 10 for c in words.CATEGORIES)
  assert not any(character.isdigit() for p in prompts for character in p["prompt"])


def test_evaluation_questions_have_short_answers_and_balanced_yes_and_no():
  questions = i2t_questions(500, seed=2)
  answers = {kind: [q["answer"] for q in questions if q["kind"] == kind] for kind in words.KINDS}
  assert all(len(a) == 100 for a in answers.values())
  assert answers["yesno"].count("yes") == 50
  assert set(answers["colour"]) == set(COLOURS)
  assert set(answers["digit"]) == set(DIGITS) >= set(answers["relation"])
  assert set(answers["count"]) == {"one", "two", "three", "four"}


@pytest.mark.parametrize("share", [words.COLOURED, 0.4])
def test_yes_and_no_are_balanced(share):
  """Neither that a colour is named nor which digit is tells the answer."""
  answers, coloured, kept = [], [], []
  for i in range(8000):
    rng = stream("balance", i)
    scene = draw_any(rng, "train")
    question, answer = words.ask(rng, "yesno", scene, coloured=share) or ("", "")
    answers.append(answer)
    coloured += [answer] if any(c in question for c in COLOURS) else []
    if answer == "no":
      kept.append(any(DIGITS[g.label] in question for g in scene.glyphs))
  assert abs(answers.count("yes") / 8000 - 0.5) < 0.02
  assert abs(len(coloured) / 8000 - share) < 0.02
  assert abs(coloured.count("yes") / len(coloured) - 0.5) < 0.02
  assert abs(np.mean(kept) - 0.5 * share / words.COLOURED) < 0.03


def test_answers_to_questions_are_true():
  for i in range(600):
    rng = stream("answers", i)
    prompt = words.draw_prompt(rng, ("position", "colour_attribution")[i % 2])
    scene = scene_of(prompt.as_dict(), rng)
    labels, inks = ([getattr(g, f) for g in scene.glyphs] for f in ("label", "colour"))
    question, answer = words.ask(rng, "yesno", scene, positive=i % 3 == 0) or ("", "")
    thing = question.removeprefix("Is there ").split(" in the ")[0].rstrip("?").split()[1:]
    label, ink = DIGITS.index(thing[-1]), thing[0] if len(thing) == 2 else None
    there = any(a == label and ink in (None, b) for a, b in zip(labels, inks, strict=True))
    assert there == (answer == "yes") == (i % 3 == 0)
    turn = words.ask(rng, "relation", scene)
    where, anchor = (scene.glyphs[1], scene.glyphs[0]), DIGITS[labels[0]]
    if turn and turn[0].endswith(f"the {anchor}?"):
      assert turn[1] == DIGITS[where[0].label]


def test_wording():
  assert words.name(8) == "an eight" and words.name(1) == "a one"
  assert words.name(8, "red") == "a red eight" and words.name(3, numeral=True) == "a 3"
  assert words.plural(6) == "sixes" and words.plural(0) == "zeros"
  assert words.listing(["a", "b", "c"]) == "a, b and c"
  with pytest.raises(ValueError, match="unknown category 'fruit'"):
    words.draw_prompt(stream(0), "fruit")


def test_documents_are_repeatable_words_of_some_size():
  documents = text_documents(count=900)
  assert documents == text_documents(count=900)
  assert 500_000 < sum(map(len, documents)) < 3_000_000
  assert any("left of" in text for text in documents[-900:])
  assert (
    dict(english.summaries())["str.upper"] == "Return a copy of the string converted to uppercase."
  )
  assert english.fact(stream("fact", 1)) == english.fact(stream("fact", 1))
