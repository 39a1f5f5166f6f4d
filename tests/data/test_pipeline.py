"""Batches depend on the seed and the step, and on nothing else."""

import itertools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from tarjax.data import mixture, pipeline, rows, sources, tokenizer
from tarjax.sharding import batch_sharding, make_mesh

DOCUMENTS = ["You are a helpful assistant. system user a red three left of a blue seven"] * 3
SIZES = {1: 9, 2: 4, 3: 1}


def codes(i):
  return {s: np.arange(n, dtype=np.uint16) * 5 % 16 + i % 16 for s, n in SIZES.items()}


def drawing(i):
  turns = [("human", f"a red three {i}"), ("gpt", "<image>")]
  return chat(i, turns, codes=[codes(i)], vq=[np.arange(6, dtype=np.uint16) + i])


def talking(i):
  return chat(i, [("human", f"two {i}"), ("gpt", "three " * (i % 9 + 1))])


def picture(i):
  image = np.full((6, 8, 3), i % 251, np.uint8)
  image[:, 4:] //= 2
  return chat(i, [("human", "<image>"), ("gpt", f"three {i}")], images=[image])


def chat(i, turns, **record):
  turns = [{"from": role, "value": value} for role, value in turns]
  return {"id": f"x/{i}", "source": "x", "conversations": turns, **record}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  home = tmp_path_factory.mktemp("home")
  tokenizer.build_tokenizer(home / "text", 290, DOCUMENTS)
  tokenizer.add_image_tokens(home / "text", home / "tokenizer", 32)
  for name, make, count in (
    ("drawing", drawing, 300),
    ("talking", talking, 200),
    ("picture", picture, 100),
  ):
    sources.write_records(home / name, [make(i) for i in range(count)], meta={})
  return home


def spec(name, weight=1.0):
  return {"name": "records", "path": f"../{name}", "weight": weight}


PACKED = {
  "sources": [spec("drawing", 2.0), spec("talking")],
  "format": "packed",
  "tokenizer": "../tokenizer",
  "length": 256,
  "window": 64,
  "scales": {"1": 2.0, "2": 1.0, "3": 1.0},
}
FORMATS = {
  "images": {"sources": [spec("picture")], "format": "images"},
  "pairs": {
    "sources": [spec("picture")],
    "format": "pairs",
    "tokenizer": "../tokenizer",
    "text_length": 12,
    "size": 4,
    "resize": "crop",
  },
  "codes": {"sources": [spec("drawing")], "format": "codes"},
  "packed": PACKED,
}


def config(home, data, **changes):
  return ConfigDict({"seed": 3, "batch": 8, "workdir": str(home / "run"), "data": data} | changes)


def take(home, data, count, *, start=0, split="train", sharding=None, **changes):
  batches = pipeline.make_batches(
    config(home, data, **changes), start_step=start, sharding=sharding, split=split
  )
  return list(itertools.islice(batches, count))


def assert_same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys()
    for key in x:
      np.testing.assert_array_equal(x[key], y[key])


@pytest.mark.parametrize("name", FORMATS)
def test_a_step_is_the_same_however_it_is_reached(home, name):
  data = FORMATS[name]
  run = take(home, data, 6)
  assert_same(run[4:], take(home, data, 2, start=4))
  assert_same(run[:3], take(home, data | {"threads": 0}, 3))
  assert_same(run[:3], take(home, data | {"threads": 5, "prefetch": 2}, 3))
  other = take(home, data, 1, seed=4)[0]
  assert any((run[0][k] != other[k]).any() for k in other)
  assert any((run[0][k] != run[1][k]).any() for k in other)


@pytest.mark.parametrize("name", FORMATS)
def test_hosts_share_one_stream(home, name):
  data = rows.make_config(config(home, FORMATS[name]).data)
  whole = take(home, FORMATS[name], 3)
  for hosts in (2, 4):
    parts = []
    for host in range(hosts):
      c = config(home, FORMATS[name])
      records = pipeline.mix(data, workdir=c.workdir, split="train", seed=c.seed)
      share = range(host * 8 // hosts, (host + 1) * 8 // hosts)
      format_ = rows.FORMATS[name](data, records, c, "train")
      steps = pipeline.Steps(format_.row, 8, share)
      parts.append([steps[k] for k in range(3)])
    joined = [{k: np.concatenate([p[i][k] for p in parts]) for k in whole[0]} for i in range(3)]
    assert_same(whole, joined)


def test_global_arrays(home):
  mesh = make_mesh({"data": 2, "fsdp": 2, "model": 2})
  sharding = batch_sharding(mesh)
  with jax.transfer_guard("disallow"):
    batches = take(home, PACKED, 2, sharding=sharding)
  assert all(x.sharding == sharding and x.shape == (8, 256) for x in batches[0].values())
  assert_same(take(home, PACKED, 2), jax.device_get(batches))


def test_rows_of_this_process():
  mesh = make_mesh({"data": 4, "fsdp": 1, "model": 2})
  assert pipeline.local_rows(batch_sharding(mesh), 12) == list(range(12))
  assert pipeline.local_rows(NamedSharding(mesh, PartitionSpec()), 3) == [0, 1, 2]
  half = jax.sharding.Mesh(np.array(jax.devices()[:2]), "x")
  assert pipeline.local_rows(NamedSharding(half, PartitionSpec("x")), 4) == [0, 1, 2, 3]


def test_shapes_and_types(home):
  batch = take(home, FORMATS["images"], 1)[0]
  assert batch["image"].shape == (8, 6, 8, 3) and batch["image"].dtype == np.uint8
  batch = take(home, FORMATS["pairs"], 1)[0]
  assert batch["image"].shape == (8, 4, 4, 3)
  assert batch["text"].shape == (8, 12) and batch["text"].dtype == np.int32
  batch = take(home, FORMATS["codes"], 1)[0]
  assert {k: v.shape for k, v in batch.items()} == {
    "codes1": (8, 9),
    "codes2": (8, 4),
    "codes3": (8, 1),
    "vq": (8, 6),
  }
  assert all(v.dtype == np.int32 for v in batch.values())
  i = batch["vq"][:, 0]
  assert (batch["codes1"] == np.arange(9) * 5 % 16 + i[:, None] % 16).all()


def test_pairs_belong_together(home):
  from tarjax.data import tokens

  tok = tokens.load_tokenizer(home / "tokenizer")
  pad = tokens.make_vocab(tok).pad
  batch = take(home, FORMATS["pairs"] | {"resize": "squash", "size": 0}, 1)[0]
  for image, text in zip(batch["image"], batch["text"], strict=True):
    expected = tok.encode(f"three {image[0, 0, 0]}").ids
    assert text.tolist() == expected + [pad] * (12 - len(expected))


def test_each_pass_holds_every_record_once(home):
  batches = take(home, FORMATS["images"], 25)
  seen = np.concatenate([b["image"][:, 0, 0, 0] for b in batches])
  first, second = seen[:100].tolist(), seen[100:].tolist()
  assert sorted(first) == sorted(second) == list(range(100))
  assert first != second and first != list(range(100))


def test_the_samples_of_a_step_have_names(home):
  batch = take(home, FORMATS["images"], 1, start=2)[0]
  names = pipeline.sample_ids(config(home, FORMATS["images"]))(2)
  assert names == [f"x/{value}" for value in batch["image"][:, 0, 0, 0]]
  assert len(pipeline.sample_ids(config(home, FORMATS["codes"]))(0)) == 8
  packed = pipeline.sample_ids(config(home, PACKED))(0)
  segments = take(home, PACKED, 1)[0]["segments"]
  assert len(packed) == segments.max(1).sum() > 8


def test_mixture_and_scales(home):
  c = config(home, PACKED)
  data = rows.make_config(c.data)
  records = pipeline.mix(data, workdir=c.workdir, split="train", seed=3)
  kinds = ["codes" in records(i) for i in range(300)]
  assert sum(kinds) == 200
  packed = rows.Packed(data, records, c, "train")
  vocab = packed._vocab
  counts = np.zeros(3, int)
  for i in range(900):
    ids, _ = packed.example(i)
    scales = ids[(ids >= vocab.scale0) & (ids < vocab.scale0 + 3)] - vocab.scale0
    counts[scales] += 1
    for s in scales:
      assert ((ids >= vocab.image0) & (ids < vocab.size)).sum() == SIZES[s + 1]
  np.testing.assert_allclose(counts / counts.sum(), [0.5, 0.25, 0.25], atol=0.06)


def test_short_conversations_take_half_of_the_draws(home):
  c = config(home, PACKED)
  short = chat(0, [("human", "two"), ("gpt", "yes")])["conversations"]
  record = {**talking(8), "conversations_short": short}
  records = lambda i, use: use(record, i)  # noqa: E731
  packed = rows.Packed(rows.make_config(c.data), records, c, "train")
  lengths = [len(packed.example(i)[0]) for i in range(400)]
  assert len(set(lengths)) == 2
  assert 160 < lengths.count(min(lengths)) < 240


def test_packed_batches_report_their_fill(home):
  batches = pipeline.make_batches(config(home, PACKED))
  for _ in range(4):
    next(batches)
  assert batches.stats["examples"] >= 64
  assert batches.stats["tokens"] <= batches.stats["room"]


def test_crops_are_random_in_training_only(home):
  data = FORMATS["pairs"] | {"size": 6}
  train, test = (take(home, data, 4, split=s) for s in ("train", "test"))
  ramp = {int(row.sum()) // 1000 for b in train for row in b["image"]}
  assert len(ramp) > 1
  middle = np.concatenate([b["image"] for b in test])
  assert (middle[:, :, 2] == middle[:, :, 0]).all()  # columns 1 to 6 of 8: 3 bright, 3 dark
  assert (middle[:, :, 3] == middle[:, :, 0] // 2).all()


def test_draw_is_uniform_and_differs():
  values = np.array([[mixture.draw(seed, i) for i in range(2000)] for seed in (0, 1)])
  assert len(np.unique(values)) == 4000
  np.testing.assert_allclose((values / 2.0**64).mean(axis=1), 0.5, atol=0.03)
  assert abs(np.corrcoef(values.astype(float))[0, 1]) < 0.08


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"formt": "packed"}, "config.data has no key 'formt'; did you mean 'format'"),
    ({"format": "rows"}, r"config.data.format is one of \['classes', 'codes'"),
    ({"resize": "stretch"}, "config.data.resize"),
    ({"sources": []}, "config.data.sources is empty"),
    ({"scales": {"4": 1.0}}, r"scales 1, 2 and 3, not \['4'\]"),
    ({"tokenizer": ""}, "config.data.tokenizer is needed for format 'packed'"),
    ({"sources": [spec("drawing", 0.0)]}, "weights must be positive"),
    ({"sources": [{"name": "disk"}]}, "no source 'disk'"),
    ({"format": "images"}, "record x/.* has no image"),
    ({"format": "codes", "sources": [spec("talking")]}, "lacks 'codes' or 'vq'"),
    ({"format": "latents", "sources": [spec("talking")]}, "lacks 'codes' or 'latent'"),
  ],
)
def test_bad_configs(home, change, message):
  with pytest.raises(ValueError, match=message):
    take(home, PACKED | change, 1)


def test_images_of_several_sizes(home):
  sizes = (4, 5)
  images = [picture(i) | {"images": [np.zeros((s, s, 3), np.uint8)]} for i, s in enumerate(sizes)]
  sources.write_records(home / "sizes", images, meta={})
  data = {"sources": [spec("sizes")], "format": "images"}
  with pytest.raises(ValueError, match=r"'image' has shapes .*set config\.data\.size"):
    take(home, data, 1)
  assert take(home, data | {"size": 4}, 1)[0]["image"].shape == (8, 4, 4, 3)


def test_digits_flow_through(home):
  data = {"sources": [{"name": "digits", "task": "caption"}], "format": "pairs"}
  batch = take(home, data | {"tokenizer": "../tokenizer"}, 1)[0]
  assert batch["image"].shape == (8, 48, 48, 3)
