"""Two processes, one of which has a program long before the other, and no cache of programs.

As a script, one of the two.
"""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from tarjax import distributed
from tests import processes

SLOW = 3.0  # seconds


def child(home: Path) -> None:
  distributed.start([])
  traced = []

  def program(x):
    traced.append(jax.process_index())
    time.sleep(SLOW * jax.process_index())
    return 2 * x

  jitted, x = jax.jit(program), jnp.ones(3)
  times = [time.monotonic()]
  distributed.compile_together(jitted, x)
  times.append(time.monotonic())
  value = float(jitted(x).sum())
  told = {"value": value, "traced": len(traced), "times": times}
  (home / f"{jax.process_index()}.json").write_text(json.dumps(told))
  distributed.leave(0, together=True)


def test_nobody_runs_a_program_before_all_have_compiled_it(tmp_path):
  cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
  cache |= {f"JAX_PERSISTENT_CACHE_MIN_{x}": "0" for x in ("COMPILE_TIME_SECS", "ENTRY_SIZE_BYTES")}
  quick, slow = processes.told_by(__file__, tmp_path, **cache)
  for told in (quick, slow):
    assert told["value"] == 6.0 and told["traced"] == 1  # the call finds what was compiled
  assert quick["times"][1] >= slow["times"][0] + SLOW
  assert not (tmp_path / "cache").exists()  # its order of collectives would be another


if __name__ == "__main__":
  child(Path(sys.argv[1]))
