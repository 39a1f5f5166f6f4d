"""`convert` that is killed, or whose disk takes no more: nothing is left that looks finished."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tarjax.convert import store
from tests.convert import checkpoints as make


def test_a_killed_import_looks_unfinished_and_can_be_repeated(tmp_path):
  source = make.qwen2(tmp_path / "source", num_hidden_layers=6)
  code = (
    "import sys, time\n"
    "from tarjax.convert import __main__ as m, store\n"
    "real = store.write_chunk\n"
    "def slow(*a):\n  time.sleep(.05); real(*a)\n"
    "store.write_chunk = slow\n"
    "sys.exit(m.main(sys.argv[1:]))"
  )
  run = tmp_path / "run"
  argv = [sys.executable, "-c", code, "import", str(source), "--to", str(run)]
  process = subprocess.Popen(argv, env=os.environ | {"JAX_PLATFORMS": "cpu"})
  partial = tmp_path / ".run.partial"
  deadline = time.time() + 60
  while not list(partial.rglob("[0-9].*")) and time.time() < deadline:
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert partial.is_dir() and not run.exists()
  _, out = make.there_and_back(source, tmp_path)
  assert not partial.exists()
  make.same(make.tensors_of(out), make.tensors_of(source))


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch, capsys):
  source = make.qwen2(tmp_path / "source")
  real = store.write_chunk

  def full(path, part, chunk):
    if path.parent.name.startswith("blocks.mlp"):
      raise OSError(28, "No space left on device")
    real(path, part, chunk)

  monkeypatch.setattr(store, "write_chunk", full)
  capsys.readouterr()
  assert make.run("import", source, "--to", tmp_path / "run") == 2
  err = capsys.readouterr().err
  assert "full" in err and err.count("\n") == 1
  assert {p.name for p in tmp_path.iterdir()} == {"source"}
  monkeypatch.undo()
  real_usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr("shutil.disk_usage", lambda _: type(real_usage)(0, 0, 100))
  assert make.run("import", source, "--to", tmp_path / "run") == 2
  assert "GB left" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["qwen2", "vqvae", "ar_dtok"])
def test_a_disk_that_takes_no_more(kind, tmp_path, capsys):
  """The system itself refuses to write, in the middle of a file of either format."""
  if kind == "qwen2":
    source, options = make.qwen2(tmp_path / "source"), []
  else:
    source, options = getattr(make, kind)(tmp_path)
  run = tmp_path / "run"
  assert make.run("import", source, "--to", run, *options) == 0
  before = sorted(tmp_path.iterdir())
  capsys.readouterr()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
  try:
    codes = [
      make.run("import", source, "--to", tmp_path / "again", *options),
      make.run("export", run, "--to", tmp_path / "out.pth"),
    ]
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  err = capsys.readouterr().err
  assert codes == [2, 2] and err.count("too large a file") == 2 == err.count("\n")
  assert sorted(tmp_path.iterdir()) == before
