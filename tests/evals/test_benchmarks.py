"""Prompts and scores against lmms-eval's own: lmms_eval.json was made with its functions.

Its answers are random, most of them malformed. MMBench there is `static` without the second reader
of answers that lmms-eval 0.7 has, and guesses of MMMU come from the crc32 of the question's id.
"""

import json
from pathlib import Path

import pytest

from tarjax.evals import intervals
from tarjax.evals.benchmarks import BENCHMARKS, gqa, mmbench, mme, mmmu

KNOWN = json.loads((Path(__file__).parents[1] / "lmms_eval.json").read_text())


def scores(name, rows, answers):
  benchmark = BENCHMARKS[name]
  found = intervals.score(benchmark.judge(rows, answers), benchmark.metrics)
  return {metric: score["value"] for metric, score in found.items()}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_scores_are_those_of_lmms_eval(name):
  known = KNOWN[name]
  found = scores(name, known["rows"], known["answers"])
  rounded = 5e-6 if name == "mmmu" else 0  # lmms-eval rounds it to five digits
  for metric, value in known["scores"].items():
    assert found[metric] == pytest.approx(value, rel=1e-12, abs=rounded), metric


@pytest.mark.parametrize("name", BENCHMARKS)
def test_prompts_are_those_of_lmms_eval(name):
  assert [BENCHMARKS[name].question(row) for row in KNOWN[name]["rows"]] == KNOWN[name]["prompts"]


def test_pope_counts_answers_that_are_neither():
  rows = [{"question_id": i, "answer": a} for i, a in enumerate(["yes", "yes", "yes", "no"])]
  found = scores("pope", rows, ["Yes ", "no", "yes.", "yes"])
  assert found["precision"] == 0.5 and found["recall"] == 0.5 and found["f1"] == 0.5
  assert found["accuracy"] == 0.25 and found["yes_ratio"] == 0.75 and found["neither"] == 1
  assert found["said_yes"] == 0.5


def test_pope_of_a_model_that_never_says_yes_has_no_precision():
  rows = [{"question_id": 0, "answer": "yes"}, {"question_id": 1, "answer": "no"}]
  found = scores("pope", rows, ["no", "no"])
  assert found["f1"] == found["precision"] == found["recall"] == 0 and found["accuracy"] == 0.5


@pytest.mark.parametrize(
  "answer, said",
  [("Y", "yes"), ("n.", "no"), ("a", "other"), ("", "other"), ("Know", "no"), ("It is", "other")],
)
def test_mme_reads_the_beginning_of_an_answer(answer, said):
  assert mme.parse(answer) == said


def test_mme_wants_both_questions_of_a_picture():
  rows = [
    {"category": "OCR", "question_id": picture, "answer": answer}
    for picture in ("a", "b")
    for answer in ("Yes", "No")
  ]
  found = scores("mme", rows, ["yes", "no", "yes", "yes"])
  assert found["OCR"] == found["perception"] == (200 + 50) / 2 and found["cognition"] == 0
  with pytest.raises(ValueError, match="picture 'b' of OCR has 1 questions"):
    scores("mme", rows[:3], [""] * 3)


def test_mmbench_counts_an_item_once_and_says_what_rules_cannot_read():
  options = {"A": "cat", "B": "dog", "C": None, "D": None, "category": "c", "L2-category": "l"}
  rows = [options | {"index": i + k * 10**6, "answer": "AB"[k]} for i in (1, 2, 3) for k in (0, 1)]
  found = scores("mmbench", rows, ["A", "(B)", "A.", "mouse", "mouse", "A"])
  assert found["accuracy"] == pytest.approx(100 / 3)  # the third is wrong whatever "mouse" means
  assert found["unresolved"] == 1
  assert mmbench.parse("A cat is here", rows[0]) == "A"  # by its text
  assert mmbench.parse("A dog or a cat", rows[0]) == ""


def test_gqa_keeps_inner_spaces():
  assert gqa.plain("On the Left!") == gqa.plain("on the left") != gqa.plain("on  the left")


def test_mmmu_guesses_by_the_id_and_says_so():
  row = {"id": "validation_Art_1", "question_type": "multiple-choice", "options": "['u', 'v']"}
  letter, guessed = mmmu.chosen("", row)
  assert guessed and letter in "AB" and mmmu.chosen("?", row) == (letter, True)
  assert mmmu.chosen("(A) is wrong, so (B)", row) == ("B", False)
  row |= {"question": "<image 2> or <image 1> or <image 2>?", "image_1": b"1", "image_2": b"2"}
  assert mmmu.images(row) == [b"1", b"2"]


@pytest.mark.parametrize(
  "name, row, said",
  [
    ("pope", {"question_id": 7, "answer": "maybe"}, "question 7 has the answer 'maybe'"),
    (
      "mme",
      {"question_id": "a.png", "category": "art", "answer": "Yes"},
      "question 'a.png' has the category 'art'",
    ),
    ("mmbench", {"index": 5, "answer": None}, "question 5 has the answer None"),
    (
      "seed",
      {"question_id": "q", "data_type": "audio", "answer": "A"},
      "question 'q' has data_type 'audio'",
    ),
    ("mmmu", {"id": "x", "question_type": "open", "answer": "1"}, "the id 'x'"),
    (
      "mmmu",
      {"id": "validation_Art_1", "question_type": "multiple-choice", "options": "[oops"},
      "has the options '\\[oops'",
    ),
  ],
)
def test_rows_of_another_layout_are_named(name, row, said):
  with pytest.raises(ValueError, match=said):
    BENCHMARKS[name].judge([row], [""])
