"""Records that cannot be used are named, skipped, listed, and too many of them end the run."""

import functools
import io
import json
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tarjax.data import damage, sources
from tarjax.data.damage import Damaged, Quarantine, TooManyDamaged
from tests.data import foreign
from tests.data.foreign import picture, turns
from tests.data.test_formats import FORMATS, read

ASK = turns("<image>\nWhat is it?", "a cat")


@functools.cache
def bomb() -> bytes:
  """A PNG of 30,000 x 30,000 pixels in 110 kB."""
  buffer = io.BytesIO()
  Image.new("1", (30_000, 30_000)).save(buffer, "PNG", compress_level=1)
  return buffer.getvalue()


def jpeg() -> bytes:
  buffer = io.BytesIO()
  Image.effect_noise((64, 64), 90).convert("RGB").save(buffer, "JPEG")
  return buffer.getvalue()


def without(png: bytes, chunk: bytes) -> bytes:
  """A PNG without its first chunk of one kind."""
  at = png.index(chunk) - 4
  return png[:at] + png[at + 12 + int.from_bytes(png[at : at + 4]) :]


# What is wrong with one record: its fields, its images, and what is said.
BAD = {
  "truncated jpeg": (ASK, lambda: [jpeg()[:900]], "is damaged"),
  "empty file": (ASK, lambda: [b""], "not an image file"),
  "bomb": (ASK, lambda: [bomb()], "too many pixels"),
  "text for a picture": (ASK, lambda: [b"<html>404</html>"], "not an image file"),
  "flipped bits": (ASK, lambda: [picture(1)[:45] + b"\xff" + picture(1)[46:]], "is damaged"),
  "no pixels": (ASK, lambda: [without(picture(1), b"IDAT")], "is damaged"),
  "zeros": (ASK, lambda: [bytes(500)], "not an image file"),
  "too few images": (ASK, lambda: [], "1 <image> placeholders but 0 images"),
  "too many images": (ASK, lambda: [picture(0)] * 2, "1 <image> placeholders but 2 images"),
  "no conversation": (None, lambda: [picture(0)], "neither 'conversations' nor a caption"),
  "an empty one": ([], lambda: [picture(0)], "the conversation is empty"),
  "unknown role": ([{"from": "cat", "value": "<image>"}], lambda: [picture(0)], "role 'cat'"),
  "no text": ([{"from": "human"}], lambda: [picture(0)], "a text"),
  "no turns": ("<image>", lambda: [picture(0)], "Expecting value"),
}


def rows(bad):
  """Five records, the third of which is damaged."""
  talk, images, _ = BAD[bad]
  row = {} if talk is None else {"conversations": json.dumps(talk) if talk != "<image>" else talk}
  good = [({"conversations": json.dumps(ASK)}, [picture(i)]) for i in range(4)]
  return [*good[:2], (row, images()), *good[2:]]


def only(source, index, file, said):
  """That record alone is damaged; -> the error."""
  for i in set(range(len(source))) - {index}:
    source[i]
  with pytest.raises(Damaged, match=said) as caught:
    source[index]
  assert caught.value.file == str(file)
  copy = pickle.loads(pickle.dumps(caught.value))  # a worker process hands it over
  assert str(copy) == str(caught.value) and copy.offset == caught.value.offset
  return caught.value


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "tar"])
@pytest.mark.parametrize("bad", BAD)
def test_one_damaged_record_among_others(tmp_path, kind, bad):
  name, write = FORMATS[kind]
  path = write(tmp_path, rows(bad))
  error = only(read(name, path), 2, path, BAD[bad][-1])
  if name == "llava":
    assert Path(path).read_bytes()[error.offset :].startswith(b'{"')
  elif name == "webdataset":
    assert Path(path).read_bytes()[error.offset :].startswith(b"./part/00002.")
  else:
    assert (error.unit, error.offset) == ("row", 2)


@pytest.mark.parametrize("bad", ["truncated jpeg", "bomb", "too many images", "unknown role"])
def test_damage_in_records(tmp_path, bad):
  data = [row | {"conversations": json.loads(row["conversations"])} for row, _ in rows(bad)]
  images = [images for _, images in rows(bad)]
  path = foreign.write_records(tmp_path / "r", list(zip(data, images, strict=True)))
  error = only(read("records", path), 2, f"{path}/shard-00000.array_record", BAD[bad][-1])
  assert (error.unit, error.offset) == ("record", 2)


@pytest.mark.parametrize("bad", ["truncated jpeg", "bomb", "empty file", "zeros"])
def test_damage_in_a_folder(tmp_path, bad):
  foreign.write_folder(tmp_path, ["a", "b", "c"])
  file = tmp_path / "part0" / "2.jpg"
  file.write_bytes(BAD[bad][1]()[0])
  assert only(read("folder", tmp_path), 1, file, BAD[bad][-1]).offset == 0


def test_captions_that_are_missing_or_broken(tmp_path):
  foreign.write_folder(tmp_path, ["a", "b", "c"])
  file = tmp_path / "part0" / "2"
  file.with_suffix(".txt").unlink()
  only(read("folder", tmp_path), 1, f"{file}.jpg", "No such file.*2.txt")
  file.with_suffix(".txt").write_bytes(b"a \xff cat")
  only(read("folder", tmp_path), 1, f"{file}.jpg", "can't decode byte 0xff")
  foreign.write_folder(tmp_path / "t", ["a", "b", "c"], "captions.jsonl")
  lines = (tmp_path / "t" / "captions.jsonl").read_text().splitlines()
  (tmp_path / "t" / "captions.jsonl").write_text("\n".join(lines[:2]))
  only(read("folder", tmp_path / "t"), 1, tmp_path / "t" / "part0" / "2.jpg", "it has no caption")


def test_damage_in_tfds(tmp_path):
  features = {"image": tfds.features.Image(), "text": tfds.features.Text()}
  examples = [{"image": picture(i), "text": b"x"} for i in range(5)]
  examples[2] = {"image": jpeg()[:900], "text": b"x"}
  path = foreign.write_tfds(tmp_path, examples, features)
  assert only(read("tfds", path), 2, f"{path}:train", "is damaged").offset == 2
  examples[2] = {"image": picture(0), "text": b"\xff"}
  path = foreign.write_tfds(tmp_path / "b", examples, features)
  only(read("tfds", path), 2, f"{path}:train", "can't decode")
  examples[2] = {"image": picture(0)}
  path = foreign.write_tfds(tmp_path / "c", examples, features)
  only(read("tfds", path), 2, f"{path}:train", "the feature 'text' is missing")


def test_missing_image_files(tmp_path):
  path = foreign.write_jsonl(tmp_path, rows("too few images")[:2] * 2)
  (tmp_path / "images" / "2-0.jpg").unlink()
  only(read("llava", path), 2, path, r"No such file.*2-0\.jpg")
  (tmp_path / "images" / "2-0.jpg").mkdir()
  only(read("llava", path), 2, path, "Is a directory")


def test_an_error_of_the_machine_is_nobodys_damage(tmp_path, monkeypatch):
  path = foreign.write_jsonl(tmp_path, rows("too few images")[:2])
  source = read("llava", path)
  monkeypatch.setattr(Path, "read_bytes", lambda self: (_ for _ in ()).throw(OSError(5, "I/O")))
  with pytest.raises(OSError, match="I/O") as caught:
    source[0]
  assert not isinstance(caught.value, Damaged)


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_broken_lines_of_json(tmp_path, kind):
  name, write = FORMATS[kind]
  path = Path(write(tmp_path, rows("too few images")[:2] * 2))
  whole = path.read_bytes()
  place = whole.index(b"2-0.jpg")
  path.write_bytes(whole[:place] + b"\xff\xfe" + whole[place + 2 :])  # broken UTF-8
  only(read(name, path), 2, path, "can't decode byte 0xff")
  at = whole.index(b'"conversations"', whole.index(b"1-0.jpg"))
  path.write_bytes(whole[:at] + b"'" + whole[at + 15 :])  # broken JSON
  only(read(name, path), 2, path, "Expecting property name")
  path.write_bytes(whole[: whole.index(b"3-0.jpg")])  # the end is missing
  only(read(name, path), 3, path, "Unterminated string")


def test_lines_that_are_no_records(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "a"}\n[1]\n{"text": "b"}\n')
  only(read("llava", tmp_path / "a.jsonl"), 1, tmp_path / "a.jsonl", "this one is a list")
  (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"caption": "b"}\n')
  only(read("llava", tmp_path / "a.jsonl"), 1, tmp_path / "a.jsonl", "a caption but no image")


def test_damaged_tars(tmp_path):
  good = [({"caption": f"c{i}"}, [picture(i)]) for i in range(5)]
  path = Path(foreign.write_tar(tmp_path, good))
  whole = path.read_bytes()
  at = whole.index(b"./part/00002.0.png")
  path.write_bytes(whole[: at + 148] + b"??" + whole[at + 150 :])  # its checksum
  source = read("webdataset", path)
  lost = [i for i in range(len(source)) if not _reads(source, i)]
  assert [source[i]["caption"] for i in range(len(source)) if i not in lost] == [
    *("c0", "c1", "c3", "c4")
  ]
  with pytest.raises(Damaged, match=f"byte {at} of .*header cannot be read"):
    source[lost[0]]
  path.write_bytes(whole[: whole.index(b"./part/00004.0.png") + 530])
  only(read("webdataset", path), 4, path, r"the tar ends within the member \.0\.png")
  path.write_bytes(b"rubbish" * 400)
  with pytest.raises(ValueError, match=r"set\.tar is not an uncompressed tar"):
    read("webdataset", path)


def _reads(source, index):
  try:
    return bool(source[index])
  except Damaged:
    return False


def test_damaged_parquet(tmp_path):
  good = [({"caption": f"c{i}", "pad": "x" * 50}, [picture(i)]) for i in range(6)]
  path = Path(foreign.write_parquet(tmp_path, good))
  whole = bytearray(path.read_bytes())
  at = whole.index(picture(2))  # row group 1 holds rows 2 and 3
  whole[at - 40 : at] = bytes(40)
  path.write_bytes(whole)
  source = read("parquet", path)
  assert [_reads(source, i) for i in range(6)] == [True, True, False, False, True, True]
  path.write_bytes(whole[:-100])
  with pytest.raises(ValueError, match=r"set\.parquet is not a whole parquet file"):
    read("parquet", path)


def test_the_list_names_each_record_once(tmp_path):
  first, second = Damaged("a", 1, "cut"), Damaged("a", 2, "empty", "byte")
  quarantine = Quarantine(tmp_path / "run", 1.0)
  for record in (first, second, first):
    quarantine.add(record)
  again, beside = Quarantine(tmp_path / "run", 1.0), pickle.loads(pickle.dumps(quarantine))
  third = Damaged("b", 1, "gone")
  for other in (again, beside):  # after a restart, and in another process
    other.add(second)
    other.add(third)
  assert damage.listed(tmp_path / "run") == [
    {"file": "a", "offset": 1, "unit": "record", "reason": "cut"},
    {"file": "a", "offset": 2, "unit": "byte", "reason": "empty"},
    {"file": "b", "offset": 1, "unit": "record", "reason": "gone"},
  ]
  assert (quarantine.damaged, again.damaged, beside.reads) == (3, 2, 2)


def test_a_list_that_a_killed_process_left_unfinished(tmp_path):
  path = tmp_path / damage.FILE
  path.write_text('{"file": "a", "offset": 1}\n{"file": "a", "off')
  for record in (Damaged("a", 1, "cut"), Damaged("a", 2, "cut")):
    Quarantine(tmp_path, 1.0).add(record)
  assert [entry["offset"] for entry in damage.listed(tmp_path)] == [1, 2]
  assert path.read_text().count("\n") == 3


def test_processes_write_one_list(tmp_path):
  code = (
    "import sys; from tarjax.data.damage import Damaged, Quarantine\n"
    "q = Quarantine(sys.argv[1], 1.0)\n"
    "for i in range(200): q.add(Damaged('a', i, 'cut'))"
  )
  runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
  assert [run.wait() for run in runs] == [0, 0, 0]
  assert [entry["offset"] for entry in damage.listed(tmp_path)] == list(range(200))


def test_a_list_that_cannot_be_written_is_no_reason_to_stop(tmp_path, capsys):
  (tmp_path / damage.FILE).mkdir()
  Quarantine(tmp_path, 1.0).add(Damaged("a", 1, "cut"))
  assert "cannot be written (Is a directory): record 1 of a is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("share", "limit", "stops"),
  [(0.01, 0.01, False), (0.2, 0.01, True), (0.2, 0.2, False), (0.03, 0.01, True), (0.01, 0, True)],
)
def test_too_many_stop_the_run(tmp_path, share, limit, stops):
  quarantine = Quarantine(tmp_path, limit)
  bad, said = 0, ""
  for i in range(5000):
    if zlib.crc32(str(i).encode()) % 1000 < 1000 * share:
      bad += 1
      try:
        quarantine.add(Damaged("a", i % 7, "cut"))
      except TooManyDamaged as e:
        said = str(e)
        break
    else:
      quarantine.passed()
  assert bool(said) == stops
  if stops:
    assert f"{bad} of {i + 1} records read are damaged" in said
    assert "quarantine.jsonl" in said and "of a is damaged: cut" in said
    assert i < 100 or share < 0.1
  with pytest.raises(ValueError, match="max_damaged is a share between 0 and 1, not 2"):
    Quarantine(tmp_path, 2)


def test_records_without_conversations_are_pictures(tmp_path):
  sources.write_records(tmp_path / "r", [{"id": "a", "images": [picture(0)]}], meta={})
  assert read("records", tmp_path / "r")[0]["images"][0].shape == (6, 8, 3)
