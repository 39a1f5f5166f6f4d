"""Encoding: any source in, shards of codes out, whoever writes them and however often it is cut."""

import json
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tarjax import checkpoint, config, encode, saving, sharding, stamps
from tarjax.config import UserError
from tarjax.data import damage, sources
from tarjax.data.damage import TooManyDamaged
from tarjax.metrics import Clock
from tarjax.models.ta_tok import TaTok, TaTokConfig
from tarjax.models.vqvae import VqVae, VqVaeConfig
from tarjax.state import TrainState
from tests.data import foreign
from tests.data.foreign import colour, picture, turns
from tests.golden import random_params


class Reds:
  """An encoder whose codes are the red of the corner pixel."""

  batch = 4

  def __init__(self, name="a"):
    self.hash = {"ta_tok": name}
    self.calls = []

  def __call__(self, images):
    self.calls.append(len(images))
    reds = np.array([image[0, 0, 0] for image in images], np.int32)
    return {f"codes{s}": np.repeat(reds[:, None], n, 1) for s, n in ((1, 9), (2, 4), (3, 1))}


def settings(workdir, path, **changes):
  sets = {"data": {"name": "llava", "path": str(path)}}
  base = {"seed": 0, "batch": 4, "shard": 6, "sets": sets} | encode.OPTIONAL
  workdir.mkdir(exist_ok=True)
  return ConfigDict(base | changes)


def run(workdir, path, encoder=None, share=(0, 1), **changes):
  clock = Clock(workdir, time.time())
  made = settings(workdir, path, **changes)
  return encode.encode(encoder or Reds(), made, workdir, share, clock)


def reds(workdir):
  """id -> the codes of its images."""
  records = sources.Records(workdir / "data")
  found = [records[i] for i in range(len(records))]
  return {r["id"]: [int(c[1][0]) for c in r["codes"]] for r in found}


@pytest.fixture
def chats(tmp_path):
  """40 conversations with no, one or two images; two are damaged."""
  rows = []
  for i in range(40):
    talk = [turns("hi", "yes"), turns("red", "<image>"), turns("like <image>", "<image>")][i % 3]
    images = [picture(i + k) for k in range(i % 3)]
    rows.append(({"id": f"r/{i}", "conversations": talk}, images))
  rows[7] = (rows[7][0], [b""])
  rows[8] = (rows[8][0], [picture(0)])
  return foreign.write_jsonl(tmp_path / "set", rows)


def expected():
  return {
    f"r/{i}": [int(colour(i + k)[0, 0, 0]) for k in range(i % 3)]
    for i in range(40)
    if i not in (7, 8)
  }


def test_a_set_is_encoded_without_its_damaged_records(tmp_path, chats, capsys):
  encoder = Reds()
  assert run(tmp_path / "run", chats, encoder) == 38
  assert reds(tmp_path / "run") == expected()
  assert max(encoder.calls) <= 4
  record = sources.Records(tmp_path / "run" / "data")[1]
  assert record["conversations"][0]["value"] == "red" and "images" not in record
  meta = sources.read_meta(tmp_path / "run" / "data")
  assert meta["tokenizers"] == {"ta_tok": "a"} and "bicubic" in meta["resize"]
  assert [s["count"] for s in meta["shards"]] == [6, 4, 6, 6, 6, 6, 4]
  assert len(damage.listed(tmp_path / "run")) == 2
  assert "2 damaged records were left out" in capsys.readouterr().out
  assert not (tmp_path / "run" / "data" / encode.BEGUN).exists()
  assert run(tmp_path / "run", chats, Reds()) == 38
  assert "data: 38 records are there" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(tmp_path, chats):
  class Stops(Reds):
    def __call__(self, images):
      if len(self.calls) == 8:
        raise KeyboardInterrupt
      return super().__call__(images)

  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / "run", chats, Stops())
  shards = sorted((tmp_path / "run" / "data").glob("shard-*"))
  assert 0 < len(shards) < 7
  before = [path.stat().st_mtime_ns for path in shards]
  with pytest.raises(UserError, match="made with another tokenizers: remove it first"):
    run(tmp_path / "run", chats, Reds("b"))  # the other shards are still those of a
  with pytest.raises(UserError, match="made with another shard"):
    run(tmp_path / "run", chats, shard=7)
  assert run(tmp_path / "run", chats) == 38
  assert [path.stat().st_mtime_ns for path in shards] == before
  assert reds(tmp_path / "run") == expected()
  with pytest.raises(UserError, match="made with another tokenizers"):
    run(tmp_path / "run", chats, Reds("b"))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_shards(tmp_path, chats, count):
  counts = [0] * count
  encoders = [Reds() for _ in range(count)]

  def work(k):
    counts[k] = run(tmp_path / "run", chats, encoders[k], (k, count))

  processes = [threading.Thread(target=work, args=(k,)) for k in range(count)]
  for process in processes:
    process.start()
  for process in processes:
    process.join(60)
  assert counts == [38] * count
  assert all(encoder.calls for encoder in encoders)
  assert reds(tmp_path / "run") == expected()
  run(tmp_path / "alone", chats)
  files = [f for f in (tmp_path / "alone" / "data").iterdir()]
  for file in files:
    assert (tmp_path / "run" / "data" / file.name).read_bytes() == file.read_bytes()


def test_a_process_that_is_missing_is_said(tmp_path, chats, monkeypatch):
  monkeypatch.setattr(encode, "PATIENCE", 0.6)
  with pytest.raises(UserError, match=r"shard-00001\.array_record and 2 more files did not appear"):
    run(tmp_path / "run", chats, share=(0, 2))


def test_what_cannot_be_encoded(tmp_path, chats):
  with pytest.raises(TooManyDamaged, match="records read are damaged"):
    run(tmp_path / "run", chats, max_damaged=0)
  sets = {"data": {"name": "llava", "path": chats, "count": 41}}
  with pytest.raises(ValueError, match=r"config\.sets\.data: 40 records there, count=41"):
    run(tmp_path / "b", chats, sets=sets)


def save(run_dir, params, frozen, **settings):
  place = sharding.replicated(sharding.make_mesh({"data": -1}))
  params, frozen = (jax.device_put(tree, place) for tree in (params, frozen))
  saver = saving.Saver(run_dir, keep=1)
  saver.save(1, TrainState(1, params, {"m": params}), {"next_step": 1})
  saver.close()
  checkpoint.save_frozen(run_dir, frozen)
  config.write_json(run_dir / "config.json", {"config": settings})


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
  """A TA-Tok and a VQVAE at random, as training leaves them."""
  home = tmp_path_factory.mktemp("runs")
  encoder = dict(width=16, depth=2, heads=2, mlp=16, image=12, patch=2)
  decoder = dict(depth=1, heads=2, mlp=16, positions=16)
  model: dict = dict(encoder=encoder, decoder=decoder, codes=32, width=16)
  params = random_params(TaTok(TaTokConfig(**model)), np.zeros((1, 12, 12, 3), np.float32))
  frozen = {"embedding": params["quantizer"].pop("embedding")}
  save(home / "ta_tok", params, frozen, model=model)
  model = dict(channels=8, multipliers=(1, 1), blocks=1, latent=8, codes=16, code_width=4, groups=2)
  params = random_params(VqVae(VqVaeConfig(**model)), np.zeros((1, 8, 8, 3), np.float32))
  save(home / "vqvae", params, {}, model=model, data={"size": 8})
  return home


def command(home, path, *more):
  file = Path(__file__).parent.parent / "configs" / "encode.py"
  return encode.main(
    [f"--config={file}:folder:{path}", f"--workdir={home / 'mine'}", *more], time.time()
  )


def test_a_folder_of_pictures_in_one_command(tokenizers, tmp_path, capsys):
  foreign.write_folder(tmp_path / "set", [f"picture {i}" for i in range(5)])
  assert command(tokenizers, tmp_path / "set", "--config.process=3") == 2
  assert "config.process=3 must be below" in capsys.readouterr().err
  assert command(tokenizers, tmp_path / "none") == 2
  assert "there is no file like *.jpg" in capsys.readouterr().err
  assert command(tokenizers, tmp_path / "set") == 0
  records = sources.Records(tokenizers / "mine" / "data")
  assert len(records) == 5 and records[0]["caption"] == "picture 0"
  assert [len(c) for c in records[0]["codes"][0].values()] == [36, 9, 4]
  assert records[0]["vq"][0].shape == (16,)  # 8 px halved once, as the VQVAE was trained
  done = json.loads((tokenizers / "mine" / "done.json").read_text())
  assert done["steps"] == 5

  data = {"sources": [{"name": "records", "path": "../mine/data"}]}
  here = ConfigDict({"data": data, "init": {}, "ta_tok_from": "../ta_tok"})
  (tokenizers / "b").mkdir()
  stamps.verify(here, tokenizers / "b")
  meta = sources.read_meta(tokenizers / "mine" / "data")
  assert json.loads((tokenizers / "b" / stamps.FILE).read_text()) == meta["tokenizers"]
