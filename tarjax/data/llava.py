"""LLaVA's format: a JSON list, or one JSON object per line, with paths into a folder of images.

Where each record begins is found once, when the source is opened; after that any record is one
read and one parse away. A broken record therefore harms none of the others.
"""

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tarjax.data import fields, files
from tarjax.data.damage import located

SUFFIXES = (".json", ".jsonl")
MARK = b"\xef\xbb\xbf"  # of UTF-8, at the beginning of some files
STRING_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


class Llava:
  """Records of JSON and JSONL files; see `tarjax.data.fields` for what they may hold.

  Args:
    path: a file, a pattern or a folder.
    images: the folder that image paths are relative to; the file's own by default.
    task: what an image with a caption becomes, "i2t" or "t2i".

  Raises:
    ValueError: no such file, or one that is not a list of records; on reading, `Damaged`.
  """

  def __init__(self, path: str, images: str = "", task: str = "i2t"):
    self._files = files.find(path, SUFFIXES)
    self._spans = [find_records(file) for file in self._files]
    self._parts = files.Parts([len(spans) for spans in self._spans])
    self._images, self._task = images, fields.check_task(task)

  def __len__(self) -> int:
    return len(self._parts)

  def where(self, index: int) -> tuple[str, int, str]:
    part, at = self._parts.locate(index)
    return self._files[part], int(self._spans[part][at][0]), "byte"

  def __getitem__(self, index: int) -> dict:
    part, at = self._parts.locate(index)
    path, (start, stop) = Path(self._files[part]), self._spans[part][at].tolist()
    with open(path, "rb") as file:
      file.seek(start)
      text = file.read(stop - start)
    with located(*self.where(index)):
      return fields.make_record(
        json.loads(text.decode("utf-8")),
        fields.image_reader(self._images or path.parent),
        name=f"{path.stem}/{at}",
        source=path.stem,
        task=self._task,
      )


def find_records(path: str) -> np.ndarray:
  """First byte and the byte after the last of each record of a file: int64[n 2]."""
  with open(path, "rb") as file:
    head = file.read(4096).removeprefix(MARK).lstrip()
    file.seek(0)
    if head.startswith(b"["):
      with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        spans = list(_elements(data))
    elif head.startswith(b"{"):
      spans = list(_lines(file))
    else:
      raise ValueError(f"{path} is neither a JSON list of records nor one record a line")
  return np.array(spans, np.int64).reshape(-1, 2)


def _lines(file) -> Iterator[tuple[int, int]]:
  """Lines that are not blank."""
  start = 0
  for line in file:
    text = line.removeprefix(MARK) if not start else line
    if text.strip():
      yield start + len(line) - len(text), start + len(line)
    start += len(line)


def _elements(data: mmap.mmap) -> Iterator[tuple[int, int]]:
  """Objects in the outermost list. One that the file's end cuts short is the last."""
  depth, start = 0, -1
  for found in STRING_OR_BRACKET.finditer(data):
    character = found[0]
    if character in b"[{":
      depth += 1
      if depth == 2:
        start = found.start()
    elif character in b"]}":
      depth -= 1
      if depth == 1:
        yield start, found.end()
        start = -1
      if not depth:
        return
  if start >= 0:
    yield start, len(data)
