"""Saves that fail, wait for nobody, and are kept by both policies."""

import resource
import shutil
import time
import types

import jax
import numpy as np
import pytest
from jax import monitoring

from tarjax import saving, sharding
from tarjax.state import TrainState


def state(step, size=1024):
  mesh = sharding.make_mesh({"data": -1})
  noise = np.random.default_rng(step).standard_normal(size).astype(np.float32)
  x = {"x": jax.device_put(noise, sharding.replicated(mesh))}
  return TrainState(step, x, {"m": x})


def steps(saver):
  return sorted(int(p.name) for p in saver.folder.iterdir() if p.name.isdigit())


def save(saver, step, size=1024):
  saver.save(step, state(step, size), {"next_step": step})


@pytest.mark.parametrize("keep, every, kept", [(1, 0, [6]), (2, 0, [5, 6]), (1, 2, [2, 4, 6])])
def test_the_last_ones_and_every_so_many(tmp_path, keep, every, kept):
  saver = saving.Saver(tmp_path, keep, every)
  for step in range(1, 7):
    save(saver, step)
    assert saver.wait()
  saver.close()
  assert steps(saver) == kept


def test_a_save_never_waits_for_the_one_before(tmp_path, monkeypatch):
  said: list[str] = []
  saver = saving.Saver(tmp_path, 5, say=said.append)
  save(saver, 1)
  saver.wait()
  slow = saver.manager._finalize  # pyright: ignore

  def slower(*args):
    time.sleep(3)
    slow(*args)

  monkeypatch.setattr(saver.manager, "_finalize", slower)
  save(saver, 2)
  began = time.monotonic()
  save(saver, 3)
  assert time.monotonic() - began < 2
  assert said == ["step 3 is not saved: step 2 is still being written"]
  assert saver.wait()
  save(saver, 4)
  saver.close()
  assert steps(saver) == [1, 2, 4]


@pytest.mark.parametrize("size, compiled", [(1024, 0), (4 * saving.SHARED_BYTES, 8)])
def test_replicas_share_the_writing_of_large_arrays_only(tmp_path, size, compiled):
  """Each replica's part is a slice, which is compiled while the loop waits."""
  value, saver, found = state(1, size), saving.Saver(tmp_path, 1), []

  def heard(event, seconds, **about):
    del seconds, about
    found.extend([event] if event.endswith("backend_compile_duration") else [])

  monitoring.register_event_duration_secs_listener(heard)
  saver.save(1, value, {})
  saver.close()
  monitoring.unregister_event_duration_listener(heard)
  assert len(found) == compiled


def test_no_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
  said: list[str] = []
  saver = saving.Saver(tmp_path, 5, say=said.append)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=8191))
    save(saver, 1)
  assert saver.wait() and not steps(saver) and "do not fit the disk" in said[0]
  save(saver, 2)
  saver.close()
  assert steps(saver) == [2] and len(said) == 1


def test_a_write_that_fails_is_told_and_tried_again(tmp_path):
  """No file may grow beyond 1 MB: what a full disk does to the background's writes."""
  said: list[str] = []
  saver = saving.Saver(tmp_path, 5, say=said.append)
  save(saver, 1)
  assert saver.wait()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
  try:
    save(saver, 2, 2**20)
    assert not saver.wait()
    assert saver.latest() == 1 and steps(saver) == [1]
    save(saver, 3, 2**20)  # again, and again it fails
    assert not saver.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert [s.split(":")[0] for s in said] == ["step 2 is not saved", "step 3 is not saved"]
  save(saver, 4, 2**20)
  assert saver.wait(), said
  saver.close()
  assert steps(saver) == [1, 4] and len(list(saver.folder.iterdir())) == 2  # no half ones
  like = {"x": jax.ShapeDtypeStruct((2**20,), np.float32, sharding=state(4).params["x"].sharding)}
  found, _, meta = saving.Saver(tmp_path, 5).restore(4, like, {"m": like})
  np.testing.assert_array_equal(found["x"], state(4, 2**20).params["x"])
  assert meta == {"next_step": 4}


def test_an_error_at_once_is_one_too(tmp_path, monkeypatch):
  said: list[str] = []
  saver = saving.Saver(tmp_path, 5, say=said.append)

  def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(saver.manager, "save", fail)
  save(saver, 1)
  assert not saver.wait() and "No space left on device" in said[0]
  save(saver, 2)
  saver.close()
  assert steps(saver) == [2]
