"""Data sets in every format that tarjax reads, written with the libraries that people use."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.core.example_parser import tf_example_pb2

from tarjax.data import sources


def colour(i: int) -> np.ndarray:
  """uint8[6 8 3] in one colour that names i, so that JPEG keeps it."""
  return np.broadcast_to(np.array([40 * i % 251, 90, 200 - i], np.uint8), (6, 8, 3))


def picture(i: int, kind: str = "PNG") -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(colour(i)).save(buffer, kind)
  return buffer.getvalue()


def turns(*texts: str) -> list[dict]:
  roles = ("human", "gpt") * len(texts)
  return [{"from": r, "value": t} for r, t in zip(roles, texts, strict=False)]


def talks() -> list[tuple[list[dict], int]]:
  """Conversations and how many images each of them has: i2t, t2i, i2i, ti2i, text."""
  return [
    (turns("<image>\nWhat is it?", "naïve 日本", "Sure?", "yes"), 1),
    (turns("a red three", "<image>"), 1),
    (turns("Generate an image similar to <image>", "<image>"), 2),
    (turns("a dog on <image>", "<image>"), 2),
    (turns("two?", "yes"), 0),
  ]


def write_jsonl(folder: Path, rows: list[tuple[dict, list[bytes]]], name="set.jsonl") -> str:
  """Fields and images of each record; images become files, as in LLaVA."""
  folder.mkdir(parents=True, exist_ok=True)
  lines = []
  for i, (row, images) in enumerate(rows):
    paths = [f"images/{i}-{k}.jpg" for k in range(len(images))]
    for path, data in zip(paths, images, strict=True):
      (folder / path).parent.mkdir(exist_ok=True)
      (folder / path).write_bytes(data)
    image = {"image": paths if len(paths) > 1 else paths[0]} if paths else {}
    lines.append(json.dumps(row | image, ensure_ascii=i % 2 == 0))
  text = "[\n" + ",\n".join(lines) + "]" if name.endswith(".json") else "\n".join(lines) + "\n"
  (folder / name).write_text(text, "utf-8")
  return str(folder / name)


def write_json(folder: Path, rows) -> str:
  return write_jsonl(folder, rows, "set.json")


def write_parquet(folder: Path, rows: list[tuple[dict, list[bytes]]], name="set.parquet") -> str:
  folder.mkdir(parents=True, exist_ok=True)
  table = [
    row | {"image": [{"bytes": data, "path": None} for data in images] or None}
    for row, images in rows
  ]
  pq.write_table(pa.Table.from_pylist(table), folder / name, row_group_size=2)
  return str(folder / name)


def write_tar(folder: Path, rows: list[tuple[dict, list[bytes]]], name="set.tar") -> str:
  folder.mkdir(parents=True, exist_ok=True)
  with tarfile.open(folder / name, "w") as tar:
    for i, (row, images) in enumerate(rows):
      texts = {"txt": row["caption"].encode()} if "caption" in row else {}
      rest = {k: v for k, v in row.items() if k != "caption"}
      members = {f"{k}.png": data for k, data in enumerate(images)} | texts
      members |= {"json": json.dumps(rest).encode()} if rest else {}
      for extension, data in members.items():
        entry = tarfile.TarInfo(f"./part/{i:05d}.{extension}")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
  return str(folder / name)


def write_records(folder: Path, rows: list[tuple[dict, list[bytes]]]) -> str:
  sources.write_records(folder, [row | {"images": images} for row, images in rows], meta={})
  return str(folder)


def write_folder(folder: Path, captions: list[str], table: str = "") -> str:
  """Pictures in two folders with a text beside each, or with one table for all."""
  rows = []
  for i, caption in enumerate(captions):
    path = folder / f"part{i % 2}" / f"{i}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(i))
    rows.append({"file_name": path.relative_to(folder).as_posix(), "text": caption})
    if not table:
      path.with_suffix(".txt").write_text(caption + "\n", "utf-8")
  if table.endswith(".jsonl"):
    (folder / table).write_text("\n".join(json.dumps(row) for row in rows))
  elif table:
    with open(folder / table, "w", newline="") as file:
      writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if table[-3:] == "tsv" else ",")
      writer.writeheader()
      writer.writerows(rows)
  return str(folder)


def write_tfds(folder: Path, examples: list[dict], features: dict) -> str:
  """A builder's folder in array_record form; tfds writes its description."""
  folder = folder / "toy" / "1.0.0"
  folder.mkdir(parents=True)
  identity = tfds.core.dataset_info.DatasetIdentity(
    name="toy",
    version=tfds.core.Version("1.0.0"),
    data_dir=str(folder),
    module_name="toy",
    config_name=None,
    config_description=None,
    config_tags=None,
    release_notes=None,
  )
  info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
  template = tfds.core.ShardedFileTemplate(
    data_dir=str(folder), dataset_name="toy", split="train", filetype_suffix="array_record"
  )
  split = tfds.core.SplitInfo(
    name="train", shard_lengths=[len(examples)], num_bytes=1, filename_template=template
  )
  info.set_splits(tfds.core.splits.SplitDict([split]))
  info.set_file_format("array_record")
  info.write_to_directory(str(folder))
  info.features.save_config(str(folder))
  file = folder / "toy-train.array_record-00000-of-00001"
  writer = ArrayRecordWriter(str(file), "group_size:1")
  for example in examples:
    proto = tf_example_pb2.Example()
    for key, value in example.items():
      feature = proto.features.feature[key]
      if isinstance(value, bytes):
        feature.bytes_list.value.append(value)
      else:
        feature.int64_list.value.append(value)
    writer.write(proto.SerializeToString())
  writer.close()
  return str(folder)
