"""What a benchmark is: where its rows lie, what is asked, and how answers are counted."""

import dataclasses
import string
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from tarjax.evals.intervals import Counts, Metrics

Row = Mapping[str, Any]

WORD = "\nAnswer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTERS = string.ascii_uppercase


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """One entry of the table.

  Prompts, parsing and metrics are those of lmms-eval's task, so that the same answers have the same
  scores; shares stay shares and points stay points, as it reports them.

  Attributes:
    folders: names that the data set's folder may have in DATA.
    files: patterns within the folder; the first with any files is meant.
    columns: that every file has.
    pictures: those of them that hold pictures.
    question: row -> the text that follows the pictures.
    images: row -> pictures as the file holds them, in the order in which they are shown.
    judge: rows without pictures, and their answers -> counts per unit; a ValueError names the row
      of a wrong layout.
    metrics: sums of the counts -> metrics; the first is the one that is compared.
    max_new: longest answer, in words.
    unit: row -> what it belongs to, where more than one row makes a unit.
    version: of prompt, parsing and metrics; raised when one of them changes.
    linked: (patterns, id column, picture column) of pictures that lie in files of their own.
  """

  name: str
  folders: tuple[str, ...]
  files: tuple[str, ...]
  columns: tuple[str, ...]
  pictures: tuple[str, ...]
  question: Callable[[Row], str]
  images: Callable[[Row], Sequence[Any]]
  judge: Callable[[Sequence[Row], Sequence[str]], list[Counts]]
  metrics: Metrics
  max_new: int
  unit: Callable[[Row], Hashable] | None = None
  version: int = 1
  linked: tuple[tuple[str, ...], str, str] | None = None


def yes_or_no(row: Row, text: str) -> str:
  """The true answer of a row; a ValueError names a row with another."""
  if text not in ("yes", "no"):
    raise ValueError(f"question {row['question_id']!r} has the answer {row['answer']!r}")
  return text


def lettered(options: Sequence[Any]) -> str:
  """ "A. first", newline, "B. second", ... of options."""
  return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))
