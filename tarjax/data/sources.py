"""Where records come from: random-access sources, each a pure function of its arguments and i.

A record is a dict: "id", "source", "task" (t2i, i2t, i2i, ti2i or text), "conversations" (turns
{"from": "human" | "gpt", "value": text with `<image>` placeholders}) and "images" (one
uint8[y x 3] per placeholder); "caption" and "conversations_short" where there are such. Once
tokenized, "images" gives way to "codes" (per image a dict from scale 1, 2, 3 to uint16[n]), "vq"
(per image uint16[t]), "unitok" (per image uint16[n m]) and "latent" (per image float32[y x c]), or
stays beside them. "label" is the number of a class. A plain document has only "id", "source" and
"text". For a record that cannot be used, a source raises `Damaged`.

  records     ArrayRecord shards that `write_records` or `tarjax.encode` made
  llava       JSON or JSONL and a folder of images      webdataset  tar files
  parquet     rows with the images' bytes               tfds        builders in array_record form
  folder      pictures with captions beside them        digits, documents   need no files
"""

import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from grain.sources import ArrayRecordDataSource
from PIL import Image

from tarjax.data import fields, transforms
from tarjax.data.damage import located
from tarjax.data.files import Parts
from tarjax.data.folder import Folder
from tarjax.data.llava import Llava
from tarjax.data.parquet import Parquet
from tarjax.data.tfds import Tfds
from tarjax.data.webdataset import WebDataset

META = "meta.json"
SHARD = "shard-{:05d}.array_record"
PATHS = ("path", "images", "captions")  # arguments that are places
TEST_EVERY = 50  # documents: one in so many is held out


class Source(Protocol):
  def __len__(self) -> int: ...
  def __getitem__(self, index: Any) -> dict: ...

  def where(self, index: Any) -> tuple[str, int, str]:
    """The file of a record, its offset in it, and what that counts: records, rows or bytes."""
    ...


def make_source(spec: Mapping[str, Any], *, workdir: str, split: str, seed: int) -> Source:
  """One entry of config.data.sources, e.g. {"name": "digits", "task": "t2i"} -> source.

  All keys but "name" and "weight" go to the constructor in `SOURCES`. Paths are relative to
  the workdir, and `{split}` in a path stands for "train" or "test".

  Raises:
    ValueError: an unknown name, or arguments that the source does not take.
  """
  kwargs = {k: v for k, v in spec.items() if k not in ("name", "weight")}
  name = spec.get("name")
  if name not in SOURCES:
    raise ValueError(f"config.data.sources: no source {name!r}; there are {sorted(SOURCES)}")
  try:
    for key in PATHS:
      if kwargs.get(key):
        kwargs[key] = resolve(workdir, kwargs[key].replace("{split}", split))
    return SOURCES[name](split=split, seed=seed, **kwargs)
  except (TypeError, AttributeError) as e:
    raise ValueError(f"config.data.sources: {name}: {e}") from e


def resolve(workdir: str, path: str) -> str:
  """A path of the config, relative to the workdir unless absolute."""
  return os.path.normpath(os.path.join(workdir, path))


class Records:
  """Records of a folder that `write_records` or `write_shard` and `finish_records` made.

  Raises:
    ValueError: a folder that was never finished, a missing shard, or one with another number
      of records than meta.json says; on reading, `Damaged`.
  """

  def __init__(self, path: str | Path):
    self.meta = read_meta(path)
    self._files = [str(Path(path) / shard["file"]) for shard in self.meta["shards"]]
    counts = [shard["count"] for shard in self.meta["shards"]]
    for file, count in zip(self._files, counts, strict=True):
      found = _count(file)
      if found != count:
        raise ValueError(f"{file} holds {found} records, but {META} says {count}")
    self._parts = Parts(counts)
    self._data = ArrayRecordDataSource(self._files)

  def __len__(self) -> int:
    return self.meta["count"]

  def where(self, index: int) -> tuple[str, int, str]:
    part, at = self._parts.locate(index)
    return self._files[part], at, "record"

  def __getitem__(self, index: int) -> dict:
    with located(*self.where(index)):
      record = decode_record(self._data[index])
      kinds = (record[key] for key in ("images", "codes", "vq", "unitok") if key in record)
      fields.check(record, len(next(kinds, ())))
      return record


class Documents:
  """Plain text documents, long ones in pieces of at most `chars` characters."""

  def __init__(self, texts: Iterable[str], *, chars: int, source: str = "documents"):
    self._texts = [piece for text in texts for piece in split_text(text, chars)]
    self._source = source

  def __len__(self) -> int:
    return len(self._texts)

  def where(self, index: int) -> tuple[str, int, str]:
    return self._source, index, "record"

  def __getitem__(self, index: int) -> dict:
    return {"id": f"{self._source}/{index}", "source": self._source, "text": self._texts[index]}


def split_text(text: str, chars: int) -> list[str]:
  """Cuts before a line, or else a word, that would pass `chars` characters; loses no character."""
  pieces = []
  while len(text) > chars:
    cut = text.rfind("\n", 1, chars)
    cut = cut if cut > chars // 2 else text.rfind(" ", 1, chars)
    cut = cut if cut > 0 else chars
    pieces.append(text[:cut])
    text = text[cut:]
  return [*pieces, text] if text.strip() else pieces


def encode_record(record: Mapping[str, Any]) -> bytes:
  """Record -> msgpack. Images become PNG (encoded bytes stay as they are), codes uint16."""
  packed = dict(record)
  if "images" in record:
    packed["images"] = [i if isinstance(i, bytes) else _png(i) for i in record["images"]]
  if "codes" in record:
    packed["codes"] = [{s: _uint16(c) for s, c in image.items()} for image in record["codes"]]
  if "vq" in record:
    packed["vq"] = [_uint16(v) for v in record["vq"]]
  if "unitok" in record:
    packed["unitok"] = [(np.shape(v), _uint16(np.ravel(v))) for v in record["unitok"]]
  if "latent" in record:
    packed["latent"] = [(v.shape, np.asarray(v, "<f4").tobytes()) for v in record["latent"]]
  return msgpack.Packer().pack(packed)


def decode_record(data: bytes) -> dict:
  """The inverse of `encode_record`; images are decoded to uint8[y x 3]."""
  record = msgpack.unpackb(data, strict_map_key=False)
  if "images" in record:
    record["images"] = [transforms.to_rgb(i) for i in record["images"]]
  if "codes" in record:
    record["codes"] = [
      {s: np.frombuffer(c, "<u2") for s, c in image.items()} for image in record["codes"]
    ]
  if "vq" in record:
    record["vq"] = [np.frombuffer(v, "<u2") for v in record["vq"]]
  if "unitok" in record:
    record["unitok"] = [np.frombuffer(v, "<u2").reshape(shape) for shape, v in record["unitok"]]
  if "latent" in record:
    record["latent"] = [np.frombuffer(v, "<f4").reshape(shape) for shape, v in record["latent"]]
  return record


def write_shard(path: str | Path, records: Iterable[Mapping[str, Any]]) -> int:
  """Writes one ArrayRecord file, which appears under its name only when whole; -> its count."""
  path, count = Path(path), 0
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  writer = ArrayRecordWriter(str(temporary), "group_size:1")
  try:
    for record in records:
      writer.write(encode_record(record))
      count += 1
    writer.close()
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  return count


def finish_records(directory: str | Path, meta: Mapping[str, Any]) -> dict:
  """Writes meta.json, last of all: `meta` with "count" and "shards" (file, count, sha256).

  What killed processes left of the shards is removed.
  """
  shards = []
  for left in Path(directory).glob(f".{SHARD.replace('{:05d}', '*')}.*"):
    left.unlink(missing_ok=True)
  for file in sorted(Path(directory).glob(SHARD.replace("{:05d}", "*"))):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    shards.append({"file": file.name, "count": _count(file), "sha256": digest})
  full = {**meta, "count": sum(s["count"] for s in shards), "shards": shards}
  temporary = Path(directory) / f".{META}.{os.getpid()}"
  temporary.write_text(json.dumps(full, indent=2))
  os.replace(temporary, Path(directory) / META)
  return full


def write_records(
  directory: str | Path,
  records: Iterable[Mapping[str, Any]],
  *,
  meta: Mapping[str, Any],
  per_shard: int = 8192,
) -> dict:
  """Writes records into shards and, when all are there, meta.json; -> what meta.json holds.

  `meta` says what made the records, e.g. {"tokenizer": hash, "split": "train"}. A shard of an
  earlier, interrupted try is overwritten.
  """
  shard: list[Mapping[str, Any]] = []
  number = 0
  for stale in (*Path(directory).glob(SHARD.replace("{:05d}", "*")), Path(directory) / META):
    stale.unlink(missing_ok=True)
  for record in records:
    shard.append(record)
    if len(shard) == per_shard:
      write_shard(Path(directory) / SHARD.format(number), shard)
      shard, number = [], number + 1
  if shard or not number:
    write_shard(Path(directory) / SHARD.format(number), shard)
  return finish_records(directory, meta)


def read_meta(directory: str | Path) -> dict:
  """meta.json of a folder of records.

  Raises:
    ValueError: there is none, so that the folder is missing or not complete.
  """
  path = Path(directory) / META
  if not path.is_file():
    raise ValueError(f"{directory} is not a finished folder of records: {META} is missing")
  return read_json(path)


def read_json(path: Path) -> dict:
  """An object in a file; ValueError, with its name, when there is none."""
  try:
    found = json.loads(path.read_bytes())
  except ValueError as e:
    raise ValueError(f"{path} is damaged: {e}") from e
  if not isinstance(found, dict):
    raise ValueError(f"{path} is damaged: it holds no object")
  return found


def _count(file: str | Path) -> int:
  if not os.path.isfile(file):
    raise ValueError(f"{file} is missing")
  reader = ArrayRecordReader(str(file), "readahead_buffer_size:0")
  if not reader.ok():  # closing it would raise once more
    raise ValueError(f"{file} is not a whole ArrayRecord file")
  count = reader.num_records()
  reader.close()
  return count


def _png(image: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "PNG", compress_level=1)
  return buffer.getvalue()


def _uint16(codes) -> bytes:
  codes = np.asarray(codes)
  if codes.ndim != 1 or codes.dtype.kind not in "iu":
    raise ValueError(f"codes must be integers [n], not {codes.dtype}{list(codes.shape)}")
  if codes.size and not 0 <= codes.min() <= codes.max() < 65536:
    raise ValueError(f"codes must be integers in 0..65535, not {codes.min()}..{codes.max()}")
  return codes.astype("<u2").tobytes()


def _digits(*, split: str, seed: int, **kwargs) -> Any:
  from tarjax.data.digits import Digits  # scikit-learn is slow to import

  return Digits(split=split, seed=seed, **kwargs)


def _documents(*, split: str, seed: int, chars: int = 800) -> Source:
  from tarjax.data.digits import text_documents

  del seed
  texts = text_documents()
  held_out = [t for i, t in enumerate(texts) if (i % TEST_EVERY == 0) == (split == "test")]
  return Documents(held_out, chars=chars)


def _from_files(kind: Callable[..., Source], *, split: str, seed: int, **kwargs) -> Source:
  del split, seed
  return kind(**kwargs)


def _tfds(*, split: str, seed: int, subset: str = "", **kwargs) -> Source:
  del seed
  return Tfds(subset=subset or split, **kwargs)


SOURCES: dict[str, Callable[..., Source]] = {
  "digits": _digits,
  "documents": _documents,
  "folder": functools.partial(_from_files, Folder),
  "llava": functools.partial(_from_files, Llava),
  "parquet": functools.partial(_from_files, Parquet),
  "records": functools.partial(_from_files, Records),
  "tfds": _tfds,
  "webdataset": functools.partial(_from_files, WebDataset),
}
