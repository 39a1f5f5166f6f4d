"""WebDataset: tar files in which members of one name and several extensions are one record.

  000017.jpg 000017.txt    a picture and its caption; 000017.cls is the number of its class
  000018.0.jpg 000018.1.jpg 000018.json    two pictures and fields, for example conversations

Where every member lies is found once and kept in NAME.tar.index, beside the tar where that can be
written; after that any record is a few reads away. A tar that was compressed has to be unpacked.
"""

import contextlib
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack

from tarjax.data import fields, files, transforms
from tarjax.data.damage import located

TEXTS = ("txt", "caption")
Member = tuple[str, int, int]  # extension, first byte, size
Sample = tuple[str, int, list[Member]]  # name, byte of its first header, members


class WebDataset:
  """Samples of tar files; a member .json holds fields as in `tarjax.data.fields`.

  Args:
    path: a file, a pattern such as `train-*.tar`, or a folder.
    task: what an image with a caption becomes, "i2t" or "t2i".

  Raises:
    ValueError: no such file, or one that is not a tar; on reading, `Damaged`.
  """

  def __init__(self, path: str, task: str = "i2t"):
    self._files = files.find(path, (".tar",))
    self._samples = [read_index(file) for file in self._files]
    self._parts = files.Parts([len(samples) for samples in self._samples])
    self._task = fields.check_task(task)

  def __len__(self) -> int:
    return len(self._parts)

  def where(self, index: int) -> tuple[str, int, str]:
    part, at = self._parts.locate(index)
    return self._files[part], self._samples[part][at][1], "byte"

  def __getitem__(self, index: int) -> dict:
    part, at = self._parts.locate(index)
    path = self._files[part]
    name, _, members = self._samples[part][at]
    with open(path, "rb") as file, located(*self.where(index)):
      if not members:
        raise ValueError("the tar's header cannot be read here")
      return fields.make_record(
        _fields(file, members),
        transforms.to_rgb,
        name=name,
        source=Path(path).stem,
        task=self._task,
      )


def _fields(file, members: list[Member]) -> dict[str, Any]:
  """The members of a sample as the fields of a record."""
  found: dict[str, Any] = {}
  images = []
  for extension, start, size in members:
    file.seek(start)
    data = file.read(size)
    if len(data) != size:
      raise ValueError(f"the tar ends within the member .{extension}")
    kind = extension.rsplit(".", 1)[-1]
    if f".{kind}" in transforms.SUFFIXES:
      images.append(data)
    elif kind == "cls" and data.strip().isdigit():
      found["label"] = int(data)
    elif kind == "json":
      found = json.loads(data.decode("utf-8")) | found
    elif kind in TEXTS:
      found["caption"] = data.decode("utf-8")
  return found | {"image": images}


def read_index(path: str) -> list[Sample]:
  """Samples of a tar in their order, from its index where that is up to date."""
  state = os.stat(path)
  stamp = [1, state.st_size, state.st_mtime_ns]
  index = Path(path + ".index")
  with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
    found = msgpack.unpackb(index.read_bytes())
    if found["stamp"] == stamp:
      return found["samples"]
  samples = list(_samples(path))
  new = index.with_name(f"{index.name}.{os.getpid()}")
  with contextlib.suppress(OSError):  # a folder that cannot be written: look again next time
    new.write_bytes(msgpack.packb({"stamp": stamp, "samples": samples}) or b"")
    new.replace(index)
  return samples


def _samples(path: str) -> Iterator[Sample]:
  """Neighbours of one name are one sample; what cannot be read is one without members."""
  sample: Sample | None = None
  for path_in_tar, start, begin, size in _members(path):
    folder, _, file = path_in_tar.rpartition("/")
    stem, _, extension = file.partition(".")
    name = f"{folder}/{stem}" if folder else stem
    if sample and (sample[0] != name or not name):
      yield sample
      sample = None
    sample = sample or (name, start, [])
    if name:
      sample[2].append((extension.lower(), begin, size))
  if sample:
    yield sample


def _members(path: str) -> Iterator[tuple[str, int, int, int]]:
  """Name, first byte of header and of data, and size of the files in a tar.

  Where headers cannot be read, the name is empty, and the search goes on at the next one that can.
  """
  whole = False
  try:
    opened = tarfile.open(path, "r:", ignore_zeros=True)
  except tarfile.TarError as e:
    raise ValueError(f"{path} is not an uncompressed tar file: {e}") from e
  with opened as tar, open(path, "rb") as file:
    while True:
      expected = tar.offset if whole else 0
      try:
        member = tar.next()
      except tarfile.TarError:  # the file ends within the last member, which says so when read
        return
      if _written(file, expected, member.offset if member else os.path.getsize(path)):
        if not (whole or member):
          raise ValueError(f"{path} is not an uncompressed tar file")
        yield "", expected, expected, 0
      if member is None:
        return
      whole = True
      if member.isreg() and "." in os.path.basename(member.name)[1:]:  # others are no fields
        yield member.name, member.offset, member.offset_data, member.size


def _written(file, start: int, stop: int) -> bool:
  """Whether anything but zeros stands between two places of a file."""
  file.seek(start)
  while start < stop:
    chunk = file.read(min(stop - start, 1 << 20))
    if not chunk or chunk.strip(b"\0"):
      return bool(chunk)
    start += len(chunk)
  return False
