"""Asking, and going on after a kill at any byte."""

import json

import benchmark_data
import pytest

from tarjax.config import UserError
from tarjax.evals.answers import Answers
from tarjax.evals.asking import Evaluator, seed_of
from tarjax.evals.benchmarks import BENCHMARKS
from tarjax.evals.tables import Table

MADE_BY = {"checkpoint": {"mllm": "abc"}, "sampler": {"scale": 1}}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  return Table(
    BENCHMARKS["pope"], benchmark_data.write_all(tmp_path_factory.mktemp("data"), ["pope"])
  )


class Model:
  """Stands for `TarPipeline.describe`: says what lmms_eval.json says; dies after `lives` calls."""

  def __init__(self, lives: int = 1000):
    self.lives, self.asked, self.calls = lives, [], []

  def describe(self, images, questions, *, seeds, max_new):
    self.lives -= 1
    if self.lives < 0:
      raise KeyboardInterrupt
    numbers = [int(group[0][0, 0, 0]) for group in images]
    self.asked += numbers
    self.calls.append((seeds, max_new))
    return [benchmark_data.KNOWN["pope"]["answers"][i] for i in numbers]


def test_every_question_is_asked_once_in_batches(table):
  model = Model()
  found = dict(Evaluator(table, batch=8).run(model.describe))
  assert model.asked == list(range(30)) and [len(s) for s, _ in model.calls] == [8, 8, 8, 6]
  for metric, value in benchmark_data.KNOWN["pope"]["scores"].items():
    assert found[f"pope/{metric}"] == pytest.approx(value)
  seeds = [seed for call, _ in model.calls for seed in call]
  assert seeds == [seed_of(q) for q in table.questions] and {m for _, m in model.calls} == {128}


def test_seeds_depend_on_prompt_and_number_only():
  assert seed_of("a red three") == seed_of("a red three") < 2**32
  assert len({seed_of(text, i) for text in ("a", "b", "1 a") for i in range(4)}) == 12


def test_a_killed_evaluation_goes_on(tmp_path, table):
  path = tmp_path / "answers.jsonl"
  first = Model(lives=2)
  kept = Answers(path, MADE_BY, resume=False)
  with pytest.raises(KeyboardInterrupt):
    Evaluator(table, kept, 8).answer(first.describe)
  kept.close()
  second = Model()
  kept = Answers(path, MADE_BY, resume=True)
  answers = Evaluator(table, kept, 8).answer(second.describe)
  assert first.asked == list(range(16)) and second.asked == list(range(16, 30))
  assert answers == benchmark_data.KNOWN["pope"]["answers"]
  third = Model()
  assert Evaluator(table, Answers(path, MADE_BY, True), 8).answer(third.describe) == answers
  assert third.asked == []


def test_a_file_cut_at_any_byte_is_resumed(tmp_path, table):
  path = tmp_path / "answers.jsonl"
  kept = Answers(path, MADE_BY, resume=False)
  answers = Evaluator(table, kept, 8).answer(Model().describe)
  whole = path.read_bytes()
  for cut in range(0, len(whole), 97):
    path.write_bytes(whole[:cut])
    model = Model()
    kept = Answers(path, MADE_BY, resume=True)
    assert Evaluator(table, kept, 8).answer(model.describe) == answers
    kept.close()
    assert path.read_bytes() == whole and len(model.asked) == 30 - max(
      0, whole[:cut].count(b"\n") - 1
    )


def test_without_resume_it_begins_anew(tmp_path, table):
  path = tmp_path / "answers.jsonl"
  for _ in range(2):
    model = Model()
    Evaluator(table, Answers(path, MADE_BY, resume=False), 8).answer(model.describe)
    assert len(model.asked) == 30


def test_answers_of_another_question_do_not_count(tmp_path, table):
  path = tmp_path / "answers.jsonl"
  kept = Answers(path, MADE_BY, resume=False)
  kept.add("pope", [(0, "another question?", "no"), (1, table.questions[1], "maybe")])
  model = Model()
  assert Evaluator(table, kept, 8).answer(model.describe)[1] == "maybe"
  assert model.asked == [0, *range(2, 30)]


@pytest.mark.parametrize(
  "text, said",
  [
    (json.dumps({"checkpoint": {"mllm": "xyz"}, "sampler": {"scale": 1}}), "checkpoint.mllm was"),
    (json.dumps({"checkpoint": {"mllm": "abc"}}), "sampler.scale was None, and is 1"),
    ("[1]", "does not hold answers"),
    (json.dumps(MADE_BY) + "\n{}", "does not hold answers"),
    ("rubbish", "does not hold answers"),
  ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, said):
  path = tmp_path / "answers.jsonl"
  path.write_text(text + "\n")
  with pytest.raises(UserError, match=said):
    Answers(path, MADE_BY, resume=True)
  assert path.read_text() == text + "\n"
