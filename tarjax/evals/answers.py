"""Answers on disk as they are given: a JSONL file that a killed evaluation goes on from.

The first line says what the answers depend on; each other line is one answer. Lines are only ever
added, and a last line that was cut off is removed.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tarjax.config import UserError, flatten


class Answers:
  """Answers by task, row and question, with those of before when `resume`.

  Args:
    path: the file; made anew unless `resume`.
    made_by: what the answers depend on, as JSON holds it.

  Raises:
    UserError: the file was made by something else, or is not such a file.
  """

  def __init__(self, path: Path, made_by: dict[str, Any], resume: bool):
    self.path = path
    self._known: dict[tuple[str, int, str], str] = {}
    if resume and path.is_file() and (lines := _whole_lines(path)):
      self._read(lines, made_by)
      self._file = open(path, "a")  # noqa: SIM115
    else:
      self._file = open(path, "w")  # noqa: SIM115
      self._write([made_by])

  def _read(self, lines: list[str], made_by: dict[str, Any]) -> None:
    try:
      first, *rest = (json.loads(line) for line in lines)
      self._known = {(a["task"], a["row"], a["question"]): a["answer"] for a in rest}
      old, new = flatten(first), flatten(made_by)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
      raise UserError(f"{self.path} does not hold answers: {e!r}") from e
    for key in sorted(old.keys() | new.keys()):
      if old.get(key) != new.get(key):
        raise UserError(
          f"{self.path} cannot be resumed: {key.replace('/', '.')} was {old.get(key)}, "
          f"and is {new.get(key)}"
        )

  def get(self, task: str, row: int, question: str) -> str | None:
    return self._known.get((task, row, question))

  def add(self, task: str, answers: Sequence[tuple[int, str, str]]) -> None:
    """(row, question, answer)s, on disk when this returns."""
    self._known |= {(task, row, question): answer for row, question, answer in answers}
    names = ("row", "question", "answer")
    self._write([{"task": task} | dict(zip(names, a, strict=True)) for a in answers])

  def close(self) -> None:
    self._file.close()

  def _write(self, lines: list[dict]) -> None:
    self._file.write("".join(json.dumps(line) + "\n" for line in lines))
    self._file.flush()
    os.fsync(self._file.fileno())


def _whole_lines(path: Path) -> list[str]:
  """The lines of a file, whose end is cut off after the last newline."""
  text = path.read_bytes()
  end = text.rfind(b"\n") + 1
  if end < len(text):
    os.truncate(path, end)
  return text[:end].decode().splitlines()
