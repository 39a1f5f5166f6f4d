"""Every format gives the same records, whichever library wrote it."""

import json
import os
import pickle
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tarjax.data import sources, webdataset
from tests.data import foreign
from tests.data.foreign import colour, picture, talks, turns

FORMATS = {
  "jsonl": ("llava", foreign.write_jsonl),
  "json": ("llava", foreign.write_json),
  "parquet": ("parquet", foreign.write_parquet),
  "tar": ("webdataset", foreign.write_tar),
  "records": ("records", foreign.write_records),
}
TASKS = ["i2t", "t2i", "i2i", "ti2i", "text"]


def read(name, path, **arguments):
  spec = {"name": name, "path": str(path), **arguments}
  return sources.make_source(spec, workdir="/", split="train", seed=0)


def same(record, texts, images):
  assert [t["value"] for t in record["conversations"]] == texts
  assert [t["from"] for t in record["conversations"]] == ["human", "gpt"] * (len(texts) // 2)
  assert len(record["images"]) == len(images)
  for found, expected in zip(record["images"], images, strict=True):
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_records_are_the_same_in_every_format(tmp_path, kind):
  name, write = FORMATS[kind]
  rows = [
    ({"id": f"x/{i}", "conversations": talk}, [picture(i + k) for k in range(n)])
    for i, (talk, n) in enumerate(talks())
  ]
  source = read(name, write(tmp_path / "set", rows))
  again = pickle.loads(pickle.dumps(source))  # as a worker process has it
  assert len(source) == len(again) == 5
  for i in (4, 0, 3, 1, 2, 2):
    talk, n = talks()[i]
    for record in (source[i], again[i]):
      same(record, [t["value"] for t in talk], [colour(i + k) for k in range(n)])
      assert record["id"] == f"x/{i}"
      assert record.get("task", TASKS[i]) == TASKS[i]
  with pytest.raises(IndexError):
    source[5]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "tar"])
def test_captions_in_the_place_of_conversations(tmp_path, kind):
  name, write = FORMATS[kind]
  path = write(tmp_path / "set", [({"caption": f"cat {i}"}, [picture(i)]) for i in range(3)])
  drawn, told = (read(name, path, task=task)[1] for task in ("t2i", "i2t"))
  same(drawn, ["cat 1", "<image>"], [colour(1)])
  assert (drawn["task"], told["task"]) == ("t2i", "i2t")
  assert drawn["caption"] == told["caption"] == told["conversations"][1]["value"] == "cat 1"
  assert told["conversations"][0]["value"].startswith("<image>\n")
  with pytest.raises(ValueError, match="task is one of"):
    read(name, path, task="t2v")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar"])
def test_a_label_makes_up_for_a_caption(tmp_path, kind):
  name, write = FORMATS[kind]
  rows = [({"label": 40 + i}, [picture(i)]) for i in range(2)]
  record = read(name, write(tmp_path / "set", rows))[1]
  assert record["label"] == 41 and record["images"][0].shape == colour(1).shape
  same(record, ["", "<image>"], [colour(1)])


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_other_spellings(tmp_path, kind):
  name, write = FORMATS[kind]
  chat = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "<image>?"},
    {"role": "assistant", "content": "no"},
  ]
  rows = [({"conversations": json.dumps(chat), "conversations_short": chat[1:]}, [picture(0)])]
  record = read(name, write(tmp_path / "set", rows))[0]
  assert [t["from"] for t in record["conversations"]] == ["system", "human", "gpt"]
  assert record["conversations_short"] == turns("<image>?", "no")
  path = write(tmp_path / "text", [({"text": "a document"}, [])])
  assert read(name, path)[0]["text"] == "a document"


def test_images_of_parquet_as_raw_bytes_and_as_paths(tmp_path):
  talk = turns("<image>", "it")
  raw = [{"image": picture(3), "conversations": talk}]
  pq.write_table(pa.Table.from_pylist(raw), tmp_path / "raw.parquet")
  assert (read("parquet", tmp_path / "raw.parquet")[0]["images"][0] == colour(3)).all()
  (tmp_path / "a.png").write_bytes(picture(4))
  named = [{"image": {"bytes": None, "path": "a.png"}, "conversations": talk}]
  pq.write_table(pa.Table.from_pylist(named), tmp_path / "named.parquet")
  assert (read("parquet", tmp_path / "named.parquet")[0]["images"][0] == colour(4)).all()
  assert len(read("parquet", tmp_path)) == 2  # the folder, both files


def test_several_files_are_numbered_through(tmp_path):
  for k in range(3):
    rows = [({"caption": f"{k}.{i}"}, [picture(i)]) for i in range(k + 1)]
    foreign.write_tar(tmp_path, rows, f"train-{k}.tar")
  source = read("webdataset", tmp_path / "train-*.tar")
  assert [source[i]["caption"] for i in range(6)] == ["0.0", "1.0", "1.1", "2.0", "2.1", "2.2"]
  with pytest.raises(ValueError, match=r"val-\*\.tar: there is no file like \*\.tar"):
    read("webdataset", tmp_path / "val-*.tar")


def test_images_of_llava_live_where_the_config_says(tmp_path):
  path = foreign.write_jsonl(tmp_path / "a", [({"caption": "x"}, [picture(1)])])
  shutil.move(tmp_path / "a" / "images", tmp_path / "images")
  assert (read("llava", path, images=str(tmp_path))[0]["images"][0] == colour(1)).all()


def test_json_whose_strings_hold_brackets_and_quotes(tmp_path):
  texts = ['a "]}" in \\ quotes', "{[", "\\", "line\nbreak", 'end\\"']
  rows = [({"conversations": turns(t, "ok"), "meta": {"deep": [[{}]]}}, []) for t in texts]
  source = read("llava", foreign.write_json(tmp_path, rows))
  assert [source[i]["conversations"][0]["value"] for i in range(5)] == texts
  (tmp_path / "empty.json").write_text("\ufeff [ ]\n", "utf-8")
  assert len(read("llava", tmp_path / "empty.json")) == 0
  (tmp_path / "bom.jsonl").write_text('\ufeff{"text": "a"}\n\n{"text": "b"}', "utf-8")
  source = read("llava", tmp_path / "bom.jsonl")
  assert [source[i]["text"] for i in range(len(source))] == ["a", "b"]
  (tmp_path / "bad.json").write_text("yes")
  with pytest.raises(ValueError, match=r"bad\.json is neither a JSON list"):
    read("llava", tmp_path / "bad.json")


def test_the_index_of_a_tar_is_made_once(tmp_path, monkeypatch):
  path = foreign.write_tar(tmp_path, [({"caption": "a"}, [picture(0)])])
  first = read("webdataset", path)[0]["id"]
  monkeypatch.setattr(webdataset, "_members", None)
  assert read("webdataset", path)[0]["id"] == first == "./part/00000"
  monkeypatch.undo()
  foreign.write_tar(tmp_path, [({"caption": c}, [picture(0)]) for c in "bcd"])
  assert len(read("webdataset", path)) == 3  # another tar, another index
  (tmp_path / "set.tar.index").write_bytes(b"rubbish")
  assert len(read("webdataset", path)) == 3


def test_tar_of_other_tools(tmp_path):
  """Long names, folders, other members, and tars one after another."""
  names = ["d/" + "long" * 60 + ".jpg", "d/" + "long" * 60 + ".txt", "e.jpg", "e.cls", "e.txt"]
  with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
    tar.addfile(tarfile.TarInfo("d"))
    for name in names:
      (tmp_path / "file").write_bytes(picture(2) if name.endswith("jpg") else b"7")
      tar.add(tmp_path / "file", name)
  source = read("webdataset", tmp_path / "a.tar")
  assert [source[i]["caption"] for i in range(len(source))] == ["7", "7"]
  assert "label" not in source[0] and source[1]["label"] == 7
  both = (tmp_path / "a.tar").read_bytes() * 2
  (tmp_path / "both.tar").write_bytes(both)
  assert len(read("webdataset", tmp_path / "both.tar")) == 4
  with tarfile.open(tmp_path / "z.tar", "w:gz") as tar:
    tar.add(tmp_path / "file", "x.jpg")
  with pytest.raises(ValueError, match=r"z\.tar is not an uncompressed tar"):
    read("webdataset", tmp_path / "z.tar")


@pytest.mark.parametrize("table", ["", "captions.jsonl", "metadata.csv", "captions.tsv"])
def test_a_folder_of_pictures(tmp_path, table):
  captions = ["a cat, lying", "naïve 日本", "three"]
  source = read("folder", foreign.write_folder(tmp_path / "set", captions, table))
  records = [source[i] for i in range(len(source))]
  assert [r["id"] for r in records] == ["part0/0.jpg", "part0/2.jpg", "part1/1.jpg"]
  assert [r["caption"] for r in records] == [captions[0], captions[2], captions[1]]
  same(records[1], ["three", "<image>"], [colour(2)])
  assert read("folder", tmp_path / "set", task="i2t")[0]["conversations"][1]["value"] == captions[0]


def test_a_folder_without_captions(tmp_path):
  (tmp_path / "A.JPG").write_bytes(picture(0))
  (tmp_path / ".hidden.jpg").write_bytes(picture(0))
  source = read("folder", tmp_path)
  assert len(source) == 1
  same(source[0], ["", "<image>"], [colour(0)])
  (tmp_path / "bad.csv").write_text("name,words\nA.JPG,x")
  with pytest.raises(ValueError, match=r"bad\.csv is not a file of captions: a row names no"):
    read("folder", tmp_path, captions=str(tmp_path / "bad.csv"))
  os.mkdir(tmp_path / "none")
  with pytest.raises(ValueError, match=r"none: there is no file like \*\.jpg"):
    read("folder", tmp_path / "none")


def test_tfds(tmp_path):
  kinds = tfds.features
  features = {"image": kinds.Image(), "label": kinds.ClassLabel(names=["cat", "dog"])}
  examples = [{"image": picture(i), "label": i % 2} for i in range(3)]
  source = read("tfds", foreign.write_tfds(tmp_path, examples, features))
  assert [source[i]["caption"] for i in range(len(source))] == ["cat", "dog", "cat"]
  again = pickle.loads(pickle.dumps(source))
  assert (again[2]["images"][0] == colour(2)).all() and again[2]["id"] == "toy/train/2"
  features |= {"said": kinds.Text()}
  examples = [example | {"said": f"number {i}".encode()} for i, example in enumerate(examples)]
  path = foreign.write_tfds(tmp_path / "text", examples, features)
  assert read("tfds", path, task="t2i")[1]["conversations"][0]["value"] == "number 1"
  assert read("tfds", path, caption="label")[1]["caption"] == "dog"
  with pytest.raises(ValueError, match=r"no split 'test'; there are \['train'\]"):
    read("tfds", path, subset="test")
  with pytest.raises(ValueError, match="no feature 'words'"):
    read("tfds", path, caption="words")
  with pytest.raises(ValueError, match="dataset_info.json is missing"):
    read("tfds", tmp_path)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
  pq.write_table(pa.Table.from_pylist([{"text": "a"}]), tmp_path / "a.parquet")
  monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
  monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", None)
  with pytest.raises(ValueError, match="parquet needs pyarrow: pip install -r requirements-data"):
    read("parquet", tmp_path / "a.parquet")
  with pytest.raises(ValueError, match="TFDS needs tensorflow-datasets: pip install"):
    read("tfds", tmp_path)


def test_odd_pictures_are_read_wherever_they_are(tmp_path):
  """Modes and files that are rare but whole; `test_transforms` looks at their pixels."""
  exif = Image.Exif()
  exif[0x0112] = 6
  flat = Image.new("RGB", (8, 6), (200, 30, 60))
  odd = {
    "cmyk.jpg": (flat.convert("CMYK"), "JPEG", {}),
    "deep.png": (Image.fromarray(np.full((6, 8), 257 * 9, np.uint16)), "PNG", {}),
    "palette.gif": (flat.quantize(4), "GIF", {}),
    "alpha.png": (flat.convert("RGBA"), "PNG", {}),
    "gray.jpg": (flat.convert("L"), "JPEG", {}),
    "moving.webp": (flat, "WEBP", {"save_all": True, "append_images": [flat.rotate(90)]}),
    "turned.jpg": (Image.new("RGB", (6, 8)), "JPEG", {"exif": exif}),
    "wrong.jpg": (flat, "BMP", {}),
  }
  for name, (image, kind, options) in odd.items():
    image.save(tmp_path / name, kind, **options)
  source = read("folder", tmp_path)
  assert len(source) == len(odd)
  assert all(source[i]["images"][0].shape == (6, 8, 3) for i in range(len(odd)))
