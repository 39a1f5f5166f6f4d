"""Two real processes, started by launch/local.sh."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fake_stage
import jax
import numpy as np
import pytest

from tarjax import checkpoint, train
from tarjax.config import claim
from tarjax.convert.rules import flatten

HERE = Path(__file__).parent
STEPS = 50


def start(tmp_path, *more):
  """local.sh with the fake stage on 2 processes of a device each, once it has made two steps."""
  file = fake_stage.config_file(tmp_path)
  command = ["bash", HERE.parent / "launch" / "local.sh", "-n", "2", "--"]
  command += [HERE / "fake_stage.py", f"--config={file}", f"--workdir={tmp_path / 'run'}"]
  command += [f"--config.steps={STEPS}", "--config.log_every=1", "--config.save_every=1000"]
  command += ["--config.eval_every=0", "--config.mesh.data=1", "--config.mesh.model=1", *more]
  env = os.environ | {"FAKE_SECONDS": "0.2", "PYTHON": sys.executable, "GRACE": "10"}
  env |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": ""}
  process = subprocess.Popen(
    command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  assert process.stdout
  for line in process.stdout:
    if line.startswith("run 2/"):
      return process
  pytest.fail(f"it made no two steps: {process.communicate()[1]}")


def children(process):
  """The training processes, in order."""
  found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
  return sorted(int(pid) for pid in found)


def test_a_signal_to_one_process_stops_all_at_one_step(tmp_path, monkeypatch):
  process = start(tmp_path)
  os.kill(children(process)[1], signal.SIGTERM)
  out, errors = process.communicate(timeout=200)
  assert process.returncode == 143, errors
  saved = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
  assert len(saved) == 1 and 2 < int(saved[0]) < STEPS
  assert f"stopped by a signal at step {saved[0]}" in out

  # In this process, with its eight devices: the rest of the run, and all of it.
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
  fake_stage.install(monkeypatch.setattr, lambda n, m: monkeypatch.setitem(sys.modules, n, m))
  changes = {"steps": STEPS, "eval_every": 0, "mesh.data": 2, "mesh.fsdp": 4, "mesh.model": 1}
  for name in ("run", "whole"):
    config = fake_stage.get_config(changes)
    config.eval_batches = 4  # as in the run above
    claim(tmp_path / name, config)
    assert train.train(config, tmp_path / name, [], time.time()) == 0
  a, b = (flatten(checkpoint.load(str(tmp_path / name))) for name in ("run", "whole"))
  assert jax.process_count() == 1
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-5, err_msg=name)


def test_a_frozen_process_ends_the_run_with_the_stacks_of_all(tmp_path):
  process = start(tmp_path, "--config.hang_seconds=3")
  pids = children(process)
  os.kill(pids[1], signal.SIGSTOP)
  out, errors = process.communicate(timeout=200)
  assert process.returncode == 3, errors
  assert "process 0 of 2 has made no step for 3 s" in errors
  assert errors.count("most recent call first") > 4 and errors.count("tarjax/train.py") >= 2
  assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


TOGETHER = """
import os, sys, time
while time.time() < float(sys.argv[1]): pass
os.kill(os.getpid(), 9)
"""


def test_processes_that_are_killed_at_one_moment_end_the_launcher(tmp_path):
  (tmp_path / "killed.py").write_text(TOGETHER)
  command = ["bash", HERE.parent / "launch" / "local.sh", "-n", "4", "--", tmp_path / "killed.py"]
  env = os.environ | {"PYTHON": sys.executable, "GRACE": "1"}
  started = [*command, str(time.time() + 2)]
  done = subprocess.run(started, env=env, capture_output=True, text=True, timeout=60)
  assert done.returncode == 137, done.stderr


ALONE = """
import signal, sys, jax
from tarjax import distributed
stop = []
signal.signal(signal.SIGTERM, lambda n, _: stop.append(n))
if sys.argv[1] == "before":
  signal.raise_signal(signal.SIGTERM)
print("joins", flush=True)
distributed.start(stop)
"""


@pytest.mark.parametrize("index, when", [(0, "before"), (0, "while"), (1, "while")])
def test_a_signal_before_the_others_have_come_stops_at_once(index, when):
  """One process of two, whose other never comes: there is nothing to save, and no wait for it."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parent)}
  env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
  command = [sys.executable, "-c", ALONE, when]
  process = subprocess.Popen(
    command, env=env | {"JAX_PROCESS_ID": str(index)}, stdout=subprocess.PIPE, text=True
  )
  assert process.stdout and process.stdout.readline() == "joins\n"
  if when == "while":
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=30) == -signal.SIGTERM  # 143 in a shell
