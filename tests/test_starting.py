"""Where a run starts: every process reads and makes only what its own devices hold.

As a script, one of two processes of four devices: begins the run of `two_processes` in a folder.
"""

import os
import subprocess
import sys
from pathlib import Path

import fake_stage
import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from tarjax import checkpoint, distributed, optim, saving, sharding, state
from tarjax.convert.rules import flatten

HERE = Path(__file__).parent
MESH = {"data": 1, "fsdp": 8, "model": 1}
LEFT = ["down1", "up1/bias", "frozen/teacher/up0/bias"]  # random


def begin(config, workdir):
  """Step 0 of the fake stage: (state, frozen)."""
  mesh = sharding.make_mesh(config.mesh.to_dict())
  with jax.set_mesh(mesh):
    task = fake_stage.Task(config)
    optimizer = optim.make_optimizer(config.optim, config.steps)
    layout = state.make_layout(task, optimizer, mesh)
    key, _ = state.make_keys(config.seed, mesh)
    return state.begin(task, config, optimizer, layout, key, workdir, mesh, dict)


def config_of(first: bool):
  config = fake_stage.get_config({f"mesh.{axis}": size for axis, size in MESH.items()})
  config.model.width = 64
  if not first:
    config.seed = 4
    config.init = {"up0": "../a:up0", "down0": "../a:down0", "up1/kernel": "../a:up1/kernel"}
    config.frozen = {"teacher/down0": "../a:frozen", "teacher/up0/kernel": "../a:frozen_up"}
    config.dont_load = LEFT
  return config


def write_first(home: Path):
  """The run that others start from, with arrays of the teacher's shapes among its own."""
  made, _ = begin(config_of(True), home / "a")
  kernel = np.arange(64, dtype=np.float32).reshape(8, 8)
  more = {"frozen": {"kernel": kernel}, "frozen_up": kernel + 64}
  saver = saving.Saver(home / "a", 1)
  saver.save(1, made._replace(params={**made.params, **more}), {})
  saver.close()


def held(array) -> int:
  """Bytes of an array on the devices of this process."""
  return sum(shard.data.nbytes for shard in array.addressable_shards)


def child(home: Path) -> None:
  """Begins, and saves for the parent to see."""
  distributed.start([])
  assert jax.process_count() == 2 and jax.device_count() == 8
  read = []
  whole = checkpoint.Stored.__array__

  def counted(self, dtype=None, copy=None):
    array = whole(self, dtype)
    read.append(array.nbytes)
    return array

  checkpoint.Stored.__array__ = counted
  gather = multihost_utils.process_allgather

  def small(tree, tiled=False):  # barriers do
    assert sum(np.size(x) for x in jax.tree.leaves(tree)) < 8, "nobody needs all of an array"
    return gather(tree, tiled=tiled)

  multihost_utils.process_allgather = small
  made, frozen = begin(config_of(False), home / "b")
  split = [x for x in jax.tree.leaves((made.params, frozen)) if x.ndim > 1]
  assert all(not x.is_fully_addressable and 2 * held(x) == x.nbytes for x in split)
  loaded = 4 * (64 * 8 * 3 + 64 + 2 * 64)
  assert sum(read) <= loaded // 2 + 4 * 64, (sum(read), loaded)  # the bias is on every device
  saver = saving.Saver(home / "b", 1)
  saver.save(1, made, {})
  saver.close()
  distributed.leave(0, together=True)


def test_two_processes_begin_like_one_and_hold_half_each(tmp_path):
  write_first(tmp_path)
  command = ["bash", HERE.parent / "launch" / "local.sh", "-n", "2", "-d", "4", "--"]
  env = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
  env |= {"JAX_COMPILATION_CACHE_DIR": ""}
  done = subprocess.run(
    [*command, __file__, str(tmp_path)], env=env, capture_output=True, text=True, timeout=200
  )
  assert done.returncode == 0, done.stderr
  one, frozen = begin(config_of(False), tmp_path / "c")
  first, two = (flatten(checkpoint.load(str(tmp_path / name))) for name in "ab")
  for name, array in flatten(one.params).items():
    np.testing.assert_array_equal(two[name], array, err_msg=name)
    if name in ("up0/kernel", "down0/kernel", "up1/kernel"):
      np.testing.assert_array_equal(two[name], first[name], err_msg=name)
  kept = flatten(checkpoint.load_frozen(tmp_path / "b"))
  for name, array in flatten(frozen).items():
    np.testing.assert_array_equal(kept[name], array, err_msg=name)
  np.testing.assert_array_equal(kept["teacher/up0/kernel"], first["frozen_up"])


def test_only_what_is_not_loaded_is_drawn_and_as_it_would_be_among_all(tmp_path):
  config = config_of(True)
  mesh = sharding.make_mesh(config.mesh.to_dict())
  with jax.set_mesh(mesh):
    task = fake_stage.Task(config)
    layout = state.make_layout(task, optim.make_optimizer(config.optim, 9), mesh)
    key, _ = state.make_keys(config.seed, mesh)
    whole, frozen = state.draw(task, key, (layout.params, layout.frozen))
    assert whole.keys() == flatten(layout.params).keys()
    assert frozen.keys() == flatten(layout.frozen).keys()
    loaded = {**layout.params, "up0": {"kernel": np.zeros((8, 64)), "bias": np.zeros(64)}}
    some, none = state.draw(task, key, (loaded, {}))
  assert not none and some.keys() == {n for n in whole if not n.startswith("up0/")}
  for name, array in some.items():
    np.testing.assert_array_equal(array, whole[name], err_msg=name)
    assert array.sharding == flatten(layout.params)[name].sharding


@pytest.mark.parametrize("part", [np.s_[:], np.s_[1:3], np.s_[2:, 4:6], np.s_[0]])
def test_a_stored_array_is_cut_like_numpys(tmp_path, part):
  write_first(tmp_path)
  stored = checkpoint.open_tree("a:up0/kernel", tmp_path)
  array = checkpoint.load("a:up0/kernel", tmp_path)
  assert stored.shape == array.shape and stored.dtype == array.dtype
  np.testing.assert_array_equal(stored[part], array[part])
  if part == np.s_[2:, 4:6]:  # and once more
    np.testing.assert_array_equal(stored[part][1:2], array[part][1:2])
  assert np.asarray(stored, np.float16).dtype == np.float16


if __name__ == "__main__":
  child(Path(sys.argv[1]))
