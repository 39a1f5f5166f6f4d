"""What stands at an index is the same on every host, after every restart, and amid damage."""

import contextlib
import itertools
import json
import re
import threading

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tarjax.data import damage, pipeline, rows, sources, tokenizer
from tarjax.data.damage import Damaged, Quarantine, TooManyDamaged
from tarjax.data.mixture import Mixture
from tarjax.tasks.inputs import Field
from tests.data import foreign
from tests.data.foreign import picture, turns

BATCH = 8
DOCUMENTS = ["You are a helpful assistant. system user a red three left of a blue seven"] * 3


class Numbers:
  """Records that are numbers; some are damaged."""

  def __init__(self, length, bad=(), name="n"):
    self._length, self._bad, self._name = length, set(bad), name

  def __len__(self):
    return self._length

  def __getitem__(self, i):
    if i in self._bad:
      raise Damaged(self._name, i, "cut")
    return {"id": f"{self._name}/{i}", "number": i}


def mixed(tmp_path, *members, weights=None, limit=1.0, seed=0):
  weights = weights or [1.0] * len(members)
  return Mixture(members, weights, seed, Quarantine(tmp_path, limit))


def test_only_damaged_places_change(tmp_path):
  bad = (3, 17, 40)
  whole = mixed(tmp_path / "a", Numbers(50), Numbers(20, name="m"))
  poisoned = mixed(tmp_path / "b", Numbers(50, bad), Numbers(20, name="m"))
  substitutes = []
  for i in range(400):
    a, b = whole(i), poisoned(i)
    if a["id"] in {f"n/{k}" for k in bad}:
      substitutes.append(b["number"])
      assert b["id"].startswith("n/")  # of the same source, so the proportions stay
    else:
      assert a == b
  assert len(set(substitutes)) > 5 and not set(substitutes) & set(bad)
  listed = [(entry["file"], entry["offset"]) for entry in damage.listed(tmp_path / "b")]
  assert sorted(listed) == [("n", 3), ("n", 17), ("n", 40)]
  assert not damage.listed(tmp_path / "a")


def test_order_and_threads_do_not_matter(tmp_path):
  make = lambda: mixed(tmp_path, Numbers(30, range(0, 30, 3)), Numbers(5, [1], "m"))  # noqa: E731
  first, other = make(), make()
  expected = [first(i) for i in range(200)]
  found: dict[int, dict] = {}

  def work(k):
    for i in reversed(range(k, 200, 4)):
      found[i] = other(i)

  threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert [found[i] for i in range(200)] == expected
  assert len(damage.listed(tmp_path)) == 11


def test_too_much_damage_stops(tmp_path):
  mixture = mixed(tmp_path, Numbers(100, range(0, 100, 5)), limit=0.01)
  with pytest.raises(TooManyDamaged, match=r"of \d+ records read are damaged, more than max_dam"):
    for i in range(100):
      mixture(i)
  with pytest.raises(TooManyDamaged, match="1000 records in a row are damaged"):
    mixed(tmp_path, Numbers(3, range(3)))(0)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """Pictures with captions, codes, and text: each with damage in it."""
  home = tmp_path_factory.mktemp("home")
  tokenizer.build_tokenizer(home / "text", 290, DOCUMENTS)
  tokenizer.add_image_tokens(home / "text", home / "tokenizer", 32)
  pairs = [({"caption": f"three {i}"}, [picture(i)]) for i in range(60)]
  for i in (7, 30, 31):
    pairs[i] = (pairs[i][0], [picture(i)[:50]])
  foreign.write_jsonl(home / "llava", pairs)
  foreign.write_parquet(home / "parquet", pairs[:30])
  text = [({"conversations": turns(f"two {i}", "three " * (i % 9 + 1))}, []) for i in range(50)]
  text[20] = ({"conversations": turns("<image>", "no")}, [])
  foreign.write_jsonl(home / "chats", text)
  sources.write_records(home / "codes", [drawing(i) for i in range(80)], meta={})
  return home


def drawing(i):
  codes = {s: np.arange(n, dtype=np.uint16) * 5 % 16 + i % 16 for s, n in ((1, 9), (2, 4), (3, 1))}
  marks = "<image>" * (2 if i == 40 else 1)
  return {"id": f"d/{i}", "conversations": turns(f"a red three {i}", marks), "codes": [codes]}


def coded(i, **changes):
  """A record of a picture that all stages which read codes can learn from."""
  words = [{s: np.arange(n, dtype=np.uint16) + i % 8 for s, n in ((1, 9), (2, 4), (3, 1))}]
  vq = [np.arange(4, dtype=np.uint16) + i % 4]
  talk = turns(f"a red three {i}", "<image>")
  latent = [np.full((2, 2, 3), i, np.float32)]
  record = {"id": f"d/{i}", "codes": words, "vq": vq, "latent": latent, "label": i % 5}
  return {k: v for k, v in (record | {"conversations": talk} | changes).items() if v is not None}


FIELDS = {
  **{f"codes{s}": Field((n,), np.int32, 16) for s, n in ((1, 9), (2, 4), (3, 1))},
  "vq": Field((4,), np.int32, 8),
  "latent": Field((2, 2, 3), np.float32),
  "label": Field((), np.int32, 5),
}
UNUSABLE = {  # what only the format or the stage can see, and what is said of it
  "codes": [
    ({"vq": None}, "lacks 'codes' or 'vq'"),
    ({"vq": []}, "lacks 'codes' or 'vq'"),
    ({"codes": [{1: np.arange(9), 3: np.arange(1)}]}, "key 2 is missing"),
    ({"vq": [np.arange(5)]}, "'vq' has 5 codes, the stage reads 4"),
    ({"vq": [np.arange(4) + 5]}, r"'vq' holds 8, which is outside 0\.\.7"),
  ],
  "classes": [
    ({"label": None}, "lacks 'label' or 'vq'"),
    ({"label": 5}, r"'label' holds 5, which is outside 0\.\.4"),
    ({"label": -1}, r"'label' holds -1, which is outside 0\.\.4"),
  ],
  "latents": [
    ({"latent": None}, "lacks 'codes' or 'latent'"),
    ({"latent": [np.full((2, 2, 3), np.nan)]}, "'latent' holds values that are not finite"),
    (
      {"latent": [np.zeros((2, 2, 4))]},
      r"'latent' has shape \(2, 2, 4\), the stage reads \(2, 2, 3\)",
    ),
  ],
  "packed": [
    ({"codes": [{2: np.arange(4), 3: np.arange(1)}]}, r"at scales \[2, 3\], not at 1"),
    ({"codes": [{1: np.arange(9) + 24}]}, r"image code 32 is outside 0\.\.31"),
    ({"conversations": turns("three", "four")}, "0 <image> placeholders but 1 images"),
  ],
  "images": [({}, "has no image")],
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_a_stage_cannot_learn_from_is_damaged(home, tmp_path, kind):
  """It is passed over and listed like what cannot be read, and the ids tell who took its place."""
  bad = dict(zip((7, 23, 31, 38, 55), UNUSABLE[kind], strict=False))
  shown = {"images": [picture(0)]} if kind == "images" else {}
  for name, changes in (("whole", {}), ("poisoned", bad)):
    records = [coded(i, **(changes[i][0] if i in changes else shown)) for i in range(60)]
    sources.write_records(tmp_path / name, records, meta={})
  data = {"format": kind, "max_damaged": 1.0, "tokenizer": str(home / "tokenizer"), "length": 64}
  seen = {}
  for name in ("whole", "poisoned"):
    spec = [{"name": "records", "path": f"../{name}"}]
    workdir = str(tmp_path / f"run_{name}")
    config = ConfigDict(
      {"seed": 3, "batch": 4, "workdir": workdir, "data": data | {"sources": spec}}
    )
    ids = pipeline.sample_ids(config, fields=FIELDS)
    with contextlib.closing(pipeline.make_batches(config, fields=FIELDS)) as batches:
      seen[name] = [(ids(step), next(batches)) for step in range(15)]
  listed = {entry["offset"]: entry for entry in damage.listed(tmp_path / "run_poisoned")}
  assert not damage.listed(tmp_path / "run_whole") and listed.keys() == bad.keys()
  for at, (_, said) in bad.items():
    assert re.search(said, listed[at]["reason"]), listed[at]
    assert listed[at]["file"] == str(tmp_path / "poisoned" / "shard-00000.array_record")
  gone = {f"d/{at}" for at in bad}
  assert not gone & {i for ids, _ in seen["poisoned"] for i in ids}
  if kind == "packed":  # all rows of a window may change
    return
  for (before, whole), (after, poisoned) in zip(*seen.values(), strict=True):
    stayed = [i for i, name in enumerate(before) if name not in gone]
    assert [before[i] for i in stayed] == [after[i] for i in stayed]
    for name in whole:
      np.testing.assert_array_equal(whole[name][stayed], poisoned[name][stayed])


def test_when_no_record_fits_the_stage_the_reason_is_told(home, tmp_path):
  sources.write_records(tmp_path / "codes", [coded(i) for i in range(9)], meta={})
  spec = [{"name": "records", "path": "../codes"}]
  data = {"sources": spec, "format": "codes"}
  config = ConfigDict({"seed": 3, "batch": 4, "workdir": str(tmp_path / "run"), "data": data})
  with pytest.raises(TooManyDamaged, match="'vq' has 4 codes, the stage reads 16"):
    next(pipeline.make_batches(config, fields=FIELDS | {"vq": Field((16,), np.int32, 8)}))


IMAGES = {
  "sources": [
    {"name": "llava", "path": "../llava/set.jsonl", "weight": 2.0},
    {"name": "parquet", "path": "../parquet", "weight": 1.0},
  ],
  "format": "pairs",
  "tokenizer": "../tokenizer",
  "text_length": 6,
  "size": 6,
  "resize": "crop",
  "max_damaged": 0.2,
}
PACKED = {
  "sources": [
    {"name": "records", "path": "../codes", "weight": 2.0},
    {"name": "llava", "path": "../chats/set.jsonl", "weight": 1.0},
  ],
  "format": "packed",
  "tokenizer": "../tokenizer",
  "length": 128,
  "window": 48,
  "scales": {"1": 2.0, "2": 1.0, "3": 1.0},
  "max_damaged": 0.2,
}


class Share:
  """What a sharding tells process `index` of `count`: which rows of a batch are its own."""

  def __init__(self, index, count):
    self._index, self._count = index, count

  def addressable_devices_indices_map(self, shape):
    size = shape[0] // self._count
    return {"device": (slice(self._index * size, (self._index + 1) * size),)}


@pytest.fixture
def hosts(monkeypatch):
  """steps(home, workdir, data, count, first, last): batches as `count` processes make them."""
  monkeypatch.setattr(jax, "make_array_from_process_local_data", lambda sharding, x, shape: x)

  def steps(home, workdir, data, count, first, last):
    config = ConfigDict({"seed": 3, "batch": BATCH, "workdir": str(home / workdir), "data": data})
    parts = []
    for index in range(count):
      share = Share(index, count)
      batches = pipeline.make_batches(config, start_step=first, sharding=share, split="train")
      parts.append(list(itertools.islice(batches, last - first)))
    assert all(len(x) == BATCH // count for part in parts for row in part for x in row.values())
    joined = zip(*parts, strict=True)
    return [{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in joined]

  return steps


@pytest.mark.parametrize("data", [IMAGES, PACKED], ids=["images", "packed"])
def test_steps_do_not_depend_on_the_processes(home, hosts, data):
  """1, 2 and 4 processes, and a run that goes on with another number of them twice."""
  one = hosts(home, "one", data, 1, 0, 14)
  runs = [hosts(home, "two", data, 2, 0, 14), hosts(home, "four", data, 4, 0, 14)]
  changing = [hosts(home, "changing", data, n, 5 * i, 5 * i + 5) for i, n in enumerate((4, 1, 2))]
  runs.append(list(itertools.chain(*changing))[:14])
  for run in runs:
    for a, b in zip(one, run, strict=True):
      assert a.keys() == b.keys()
      for key in a:
        np.testing.assert_array_equal(a[key], b[key])
  listed = [sorted(map(json.dumps, damage.listed(home / w))) for w in ("one", "two", "four")]
  assert listed[0] == listed[1] == listed[2] and len(listed[0]) == len(set(listed[0])) > 1


def test_worker_processes_make_the_same_batches(home):
  def take(**changes):
    data = IMAGES | {"prefetch": 4, **changes}
    config = ConfigDict({"seed": 3, "batch": BATCH, "workdir": str(home / "w"), "data": data})
    return list(itertools.islice(pipeline.make_batches(config, start_step=2), 9))

  expected = take()
  for a, b in zip(expected, take(workers=2), strict=True):
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])
  assert 0 < len(damage.listed(home / "w")) <= 4
  with pytest.raises(TooManyDamaged, match="records read are damaged"):
    take(workers=1, max_damaged=0.0)


def test_packers_go_to_worker_processes(home):
  import cloudpickle

  config = ConfigDict({"seed": 3, "batch": 8, "workdir": str(home / "p"), "data": PACKED})
  data = rows.make_config(config.data)
  records = pipeline.mix(data, workdir=config.workdir, split="train", seed=3)
  row = rows.Packed(data, records, config, "train").row
  copy = cloudpickle.loads(cloudpickle.dumps(row))
  for r in (0, 40, 3):
    assert all((row(r)[k] == copy(r)[k]).all() for k in ("tokens", "labels"))
