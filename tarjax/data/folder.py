"""A folder of pictures, with captions as people keep them.

  cat.jpg cat.txt      a text beside its picture, or
  captions.jsonl       one file for all, with a line {"file_name": "cat.jpg", "text": "a cat"} each;
                       also .csv and .tsv with these two columns, also called metadata.*

Without any captions the pictures are still good for networks that see nothing else; a picture that
lacks a caption where others have one is damaged.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from tarjax.data import fields, files, transforms
from tarjax.data.damage import located

TABLES = tuple(f"{n}{s}" for n in ("captions", "metadata") for s in (".jsonl", ".csv", ".tsv"))
FILE_COLUMNS = ("file_name", "image", "file", "path")
TEXT_COLUMNS = ("text", "caption", "prompt")


class Folder:
  """Pictures of a folder and all folders within, in order of their names.

  Args:
    path: the folder.
    captions: a file with all captions; by default one of `TABLES` in the folder, else the texts.
    task: what an image with a caption becomes, "t2i" or "i2t".

  Raises:
    ValueError: there is no picture, or the file of captions cannot be read; on reading, `Damaged`.
  """

  def __init__(self, path: str, captions: str = "", task: str = "t2i"):
    self._root, self._task = Path(path), fields.check_task(task)
    self._files = files.find(path, transforms.SUFFIXES)
    table = captions or next((str(t) for n in TABLES if (t := self._root / n).is_file()), "")
    self._captions = read_captions(table) if table else None
    self._plain = not table and not any(self._root.rglob("*.txt"))

  def __len__(self) -> int:
    return len(self._files)

  def where(self, index: int) -> tuple[str, int, str]:
    return self._files[index], 0, "byte"

  def __getitem__(self, index: int) -> dict:
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of a source of {len(self)}")
    path = Path(self._files[index])
    with located(*self.where(index)):
      name = path.relative_to(self._root).as_posix() if self._root.is_dir() else path.name
      return fields.make_record(
        {"image": path.read_bytes(), "caption": self._caption(path, name)},
        transforms.to_rgb,
        name=name,
        source=self._root.name,
        task=self._task,
      )

  def _caption(self, path: Path, name: str) -> str:
    if self._plain:
      return ""
    if self._captions is None:
      return path.with_suffix(".txt").read_bytes().decode("utf-8").strip()
    found = self._captions.get(name, self._captions.get(path.name))
    if found is None:
      raise ValueError("it has no caption")
    return found


def read_captions(path: str) -> dict[str, str]:
  """A table of captions: name of the picture -> text.

  Raises:
    ValueError: a file that cannot be read as what its name says, or without the two columns.
  """
  captions = {}
  try:
    text = Path(path).read_text("utf-8-sig")
    for row in _rows(path, text):
      file = next((row[k] for k in FILE_COLUMNS if isinstance(row.get(k), str)), None)
      caption = next((row[k] for k in TEXT_COLUMNS if isinstance(row.get(k), str)), None)
      if file is None or caption is None:
        raise ValueError(f"a row names no picture or no caption: {str(row)[:80]}")
      captions[Path(file).as_posix()] = caption
  except (ValueError, OSError, csv.Error) as e:
    raise ValueError(f"{path} is not a file of captions: {e}") from e
  return captions


def _rows(path: str, text: str) -> Iterator[dict]:
  if path.endswith(".jsonl"):
    rows = (json.loads(line) for line in text.splitlines() if line.strip())
    yield from (row if isinstance(row, dict) else {} for row in rows)
  elif path.endswith((".csv", ".tsv")):
    yield from csv.DictReader(io.StringIO(text), delimiter="\t" if path.endswith(".tsv") else ",")
  else:
    raise ValueError("its name must end in .jsonl, .csv or .tsv")
