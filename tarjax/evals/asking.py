"""Asks a model the questions of one benchmark and scores the answers."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

from tarjax.evals import intervals
from tarjax.evals.answers import Answers
from tarjax.evals.tables import Table


class Evaluator:
  """`run(describe)` yields ("pope/f1", value), and so on, of one benchmark.

  Args:
    table: its rows.
    kept: answers that are there, and where new ones go; None asks everything, keeps nothing.
    batch: questions at a time.
    say: told of progress, in a sentence.
  """

  def __init__(
    self,
    table: Table,
    kept: Answers | None = None,
    batch: int = 64,
    say: Callable[[str], None] = lambda text: None,
  ):
    self.table, self.kept, self.batch, self.say = table, kept, batch, say
    self.name = table.benchmark.name

  def run(self, describe) -> Iterator[tuple[str, float]]:
    for metric, found in self.score(self.answer(describe)).items():
      yield f"{self.name}/{metric}", found["value"]

  def answer(self, describe) -> list[str]:
    """One answer per row.

    Args:
      describe: (lists of pictures, questions, seeds=, max_new=) -> answers, as
        `TarPipeline.describe`.
    """
    questions, numbers = self.table.questions, self.table.chosen
    said: dict[int, str] = {}
    if self.kept:
      known = [self.kept.get(self.name, n, q) for n, q in zip(numbers, questions, strict=True)]
      said = {i: answer for i, answer in enumerate(known) if answer is not None}
    left = [i for i in range(len(questions)) if i not in said]
    if said:
      self.say(f"{self.name}: {len(said)} of {len(questions)} answers are there")
    part: list[tuple[int, list]] = []
    for i, images in self.table.images(left):
      part.append((i, images))
      if len(part) < self.batch and i != left[-1]:
        continue
      asked = [questions[i] for i, _ in part]
      answers = describe(
        [images for _, images in part],
        asked,
        seeds=[seed_of(text) for text in asked],
        max_new=self.table.benchmark.max_new,
      )
      said |= {i: answer for (i, _), answer in zip(part, answers, strict=True)}
      if self.kept:
        rows = [numbers[i] for i, _ in part]
        self.kept.add(self.name, list(zip(rows, asked, answers, strict=True)))
      self.say(f"{self.name}: {len(said)} of {len(questions)}")
      part = []
    return [said[i] for i in range(len(questions))]

  def score(self, answers: Sequence[str]) -> dict[str, dict[str, float]]:
    """{metric: {"value", "low", "high"}}."""
    benchmark = self.table.benchmark
    return intervals.score(benchmark.judge(self.table.rows, answers), benchmark.metrics)


def seed_of(text: str, number: int = 0) -> int:
  """uint32 seed of a prompt's number-th output: the same in every subset and order of prompts."""
  digest = hashlib.sha256(f"{number} {text}".encode()).digest()
  return int.from_bytes(digest[:4], "big")
