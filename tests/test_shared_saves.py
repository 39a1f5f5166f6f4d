"""Saves of two processes, one of which cannot write its part.

As a script, one of the two.
"""

import json
import resource
import sys
import time
from pathlib import Path

import jax
import numpy as np

from tarjax import checkpoint, distributed, saving, sharding
from tarjax.state import TrainState
from tests import processes


def state(step, size=2**21):
  mesh = sharding.make_mesh({"fsdp": -1})
  place = jax.NamedSharding(mesh, jax.P("fsdp"))
  noise = np.random.default_rng(step).standard_normal(size).astype(np.float32)
  x = {"x": jax.make_array_from_callback(noise.shape, place, noise.__getitem__)}
  return TrainState(step, x, {"m": x})


def child(home: Path) -> None:
  """Saves 1; 2, which the second process fails; 3 at once; 4, failed; and 5 after a wait."""
  distributed.start([])
  said, seconds, done = [], [], []
  saver = saving.Saver(home, 5, say=said.append)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  for step in range(1, 6):
    broken = step in (2, 4) and jax.process_index() == 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20 if broken else soft, hard))
    saver.save(step, state(step), {"next_step": step})
    began = time.monotonic()
    done.append(saver.wait())
    seconds.append(time.monotonic() - began)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  saver.close()
  told = {"said": said, "seconds": seconds, "done": done}
  (home / f"{jax.process_index()}.json").write_text(json.dumps(told))
  distributed.leave(0, together=True)


def test_a_process_that_fails_holds_up_nobody(tmp_path):
  for told in processes.told_by(__file__, tmp_path):
    assert told["done"] == [True, False, True, False, True], told
    assert max(told["seconds"]) < 60, told  # and not the 20 minutes of a barrier
    assert [s.split(":")[0] for s in told["said"]] == [f"step {n} is not saved" for n in (2, 4)]
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "3", "5"]
  want = np.asarray(state(5).params["x"])
  np.testing.assert_array_equal(checkpoint.load(f"{tmp_path}:x"), want)


if __name__ == "__main__":
  child(Path(sys.argv[1]))
