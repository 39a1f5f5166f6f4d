"""Records on disk and back, damage to them, and the table of sources."""

import json

import numpy as np
import pytest

from tarjax.data import sources

RNG = np.random.default_rng(0)


def make(i):
  return {
    "id": f"x/{i}",
    "source": "x",
    "task": "t2i",
    "conversations": [
      {"from": "human", "value": f"número {i} \U0001f600"},
      {"from": "gpt", "value": "<image>"},
    ],
    "codes": [{s: RNG.integers(0, 65536, n, np.uint16) for s, n in ((1, 9), (2, 4), (3, 1))}],
    "vq": [RNG.integers(0, 16384, 5, np.uint16)],
    "latent": [RNG.normal(size=(2, 3, 4)).astype(np.float32)],
  }


def same(a, b):
  np.testing.assert_equal(a, b)
  return True


@pytest.fixture
def folder(tmp_path):
  records = [make(i) for i in range(23)]
  sources.write_records(tmp_path / "r", records, meta={"tokenizer": "abc"}, per_shard=10)
  return tmp_path / "r", records


def test_round_trip(folder):
  path, records = folder
  data = sources.Records(path)
  assert len(data) == 23
  for i in (22, 0, 9, 10, 5, 5):
    assert same(data[i], records[i])
    assert data[i]["codes"][0][1].dtype == data[i]["vq"][0].dtype == np.uint16
    assert data[i]["latent"][0].dtype == np.float32
  meta = sources.read_meta(path)
  assert meta["tokenizer"] == "abc"
  assert [s["count"] for s in meta["shards"]] == [10, 10, 3]
  assert sorted(f.name for f in path.iterdir()) == [
    "meta.json",
    *(f"shard-0000{i}.array_record" for i in range(3)),
  ]


def test_images_round_trip(tmp_path):
  image = RNG.integers(0, 256, (7, 5, 3), np.uint8)
  record = {"id": "a", "images": [image, image[::-1]], "conversations": []}
  decoded = sources.decode_record(sources.encode_record(record))
  assert same(decoded, record)
  encoded = sources.encode_record({"images": [sources._png(image)]})
  assert same(sources.decode_record(encoded)["images"], [image])


def test_codes_that_do_not_fit():
  for codes in (np.array([65536]), np.array([[1]]), np.array([0.5]), np.array([-1])):
    with pytest.raises(ValueError, match="codes must be integers"):
      sources.encode_record({"vq": [codes]})


def test_writing_again_replaces_everything(folder):
  path, _ = folder
  sources.write_records(path, [make(0)], meta={})
  assert len(sources.Records(path)) == 1
  assert len(list(path.iterdir())) == 2


def test_no_records_at_all(tmp_path):
  sources.write_records(tmp_path / "none", [], meta={})
  assert len(sources.Records(tmp_path / "none")) == 0


def test_an_interrupted_write_is_not_a_folder_of_records(folder):
  path, _ = folder

  def fails():
    yield make(0)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    sources.write_records(path, fails(), meta={}, per_shard=1)
  with pytest.raises(ValueError, match=r"is not a finished folder of records: meta\.json"):
    sources.Records(path)
  with pytest.raises(KeyboardInterrupt):
    sources.write_shard(path / "one", fails())
  assert not [f.name for f in path.iterdir() if "one" in f.name]


def test_what_a_killed_process_left_is_removed(tmp_path):
  left = tmp_path / ".shard-00000.array_record.4711"
  left.touch()
  sources.write_records(tmp_path, [], meta={})
  assert not left.exists() and (tmp_path / "shard-00000.array_record").exists()


def test_damage(folder):
  path, _ = folder
  shard = path / "shard-00001.array_record"
  good = shard.read_bytes()
  shard.write_bytes(good[: len(good) // 2])
  with pytest.raises(ValueError, match=r"shard-00001\.array_record is not a whole"):
    sources.Records(path)
  shard.unlink()
  with pytest.raises(ValueError, match=r"shard-00001\.array_record is missing"):
    sources.Records(path)
  sources.write_shard(shard, [make(0)])
  with pytest.raises(ValueError, match=r"holds 1 records, but meta\.json says 10"):
    sources.Records(path)


def test_a_damaged_record_is_named(folder):
  path, records = folder
  shard = path / "shard-00001.array_record"
  data = bytearray(shard.read_bytes())
  at = data.find("número 14".encode())
  assert at > 0, "records are stored without compression of their text"
  data[at] ^= 0xFF
  shard.write_bytes(data)
  source = sources.Records(path)
  with pytest.raises(ValueError, match=r"record 4 of .*shard-00001\.array_record is damaged"):
    source[14]
  assert same(source[20], records[20])


def test_split_text():
  text = "one two\nthree four five\n" * 20 + "x" * 90
  pieces = sources.split_text(text, 40)
  assert "".join(pieces) == text
  assert max(map(len, pieces)) <= 40
  assert sources.split_text("short", 40) == ["short"]
  assert sources.split_text("", 40) == []


def test_documents():
  data = sources.Documents(["a b c", "word " * 10], chars=20)
  assert [data[i]["text"] for i in range(len(data))][0] == "a b c"
  assert len(data) == 4
  assert data[1]["id"] == "documents/1"


def test_make_source(folder, tmp_path):
  path, _ = folder
  path.rename(tmp_path / "train")
  spec = {"name": "records", "path": "../{split}", "weight": 2.0}
  where = {"workdir": str(tmp_path / "run"), "seed": 0}
  assert len(sources.make_source(spec, split="train", **where)) == 23
  with pytest.raises(ValueError, match="test is not a finished folder"):
    sources.make_source(spec, split="test", **where)
  with pytest.raises(ValueError, match=r"no source 'disk'; there are \['digits'"):
    sources.make_source({"name": "disk"}, split="train", **where)
  with pytest.raises(ValueError, match="records: .*'colour'"):
    sources.make_source({**spec, "colour": 1}, split="train", **where)
  assert json.loads((tmp_path / "train" / "meta.json").read_text())["count"] == 23


def test_held_out_documents_are_others(monkeypatch):
  from tarjax.data import digits

  monkeypatch.setattr(digits, "text_documents", lambda: [f"text {i}" for i in range(120)])
  texts = {}
  for split in ("train", "test"):
    source = sources.make_source({"name": "documents"}, workdir="", split=split, seed=0)
    texts[split] = {source[i]["text"] for i in range(len(source))}
  assert texts["test"] == {"text 0", "text 50", "text 100"}
  assert len(texts["train"]) == 117 and not texts["train"] & texts["test"]
