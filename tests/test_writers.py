"""Writers: what importing them brings along, files that are slow to close, a full disk."""

import contextlib
import json
import resource
import struct
import subprocess
import sys
import threading
import time

from tensorboardX.proto.event_pb2 import Event  # type: ignore

from tarjax import metrics
from tarjax.writers import Progress, Writer

SCRIPT = """
import sys
import tarjax.writers
assert "tensorboardX" in sys.modules and "torch" not in sys.modules
import torch
assert torch.Tensor
"""


def test_tensorboard_is_there_before_any_thread_and_torch_is_not():
  """Half of torch, imported by a thread, is found by others that look for it."""
  subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=120)


def test_a_rewind_before_the_file_is_closed_hangs_nothing(tmp_path):
  writer, go = Writer(tmp_path, 0), threading.Event()
  writer.pool.submit(go.wait)
  for step in (1, 2):
    writer.write(step, {"loss": 1.0})
  writer.rewind(1)
  writer.write(2, {"loss": 3.0})
  go.set()
  closing = threading.Thread(target=writer.close, daemon=True)
  closing.start()
  closing.join(60)
  assert not closing.is_alive()
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 3.0)]


@contextlib.contextmanager
def no_file_beyond(size: int):
  """Further writes fail, as on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_no_line(tmp_path):
  """No file may grow beyond 2 KB, for longer than any queue or buffer is."""
  writer = Writer(tmp_path, 0)
  write = lambda steps: [writer.write(step, {"loss": step / 4, "lr": 1.0}) for step in steps]  # noqa: E731
  with no_file_beyond(2048):
    write(range(1, 501))
    writer.pool.submit(lambda: None).result(60)  # TensorBoard has taken all of it
    assert (tmp_path / "metrics.jsonl").stat().st_size == 2048
  write([501])
  closing = threading.Thread(target=writer.close, daemon=True)
  closing.start()
  closing.join(60)
  assert not closing.is_alive()
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [(line["step"], line["loss"]) for line in lines] == [(s, s / 4) for s in range(1, 502)]
  (board,) = tmp_path.glob("events.out.tfevents*")
  points = [(e.step, v.simple_value) for e in events(board) for v in e.summary.value]
  assert points == [p for s in range(1, 502) for p in ((s, s / 4), (s, 1.0))]


def test_the_clock_leaves_no_half_file_on_a_full_disk(tmp_path):
  clock = metrics.Clock(tmp_path, time.time())
  with no_file_beyond(0):
    clock.read(1)
  assert not list(tmp_path.iterdir())
  clock.read(2)
  assert [path.name for path in tmp_path.iterdir()] == ["timing.json"]


def test_a_log_that_cannot_be_written_ends_no_run():
  with open("/dev/full", "w") as stream:
    progress = Progress("run", 10, stream)
    for step in range(1000):
      progress.say(f"step {step} is not saved")
    with contextlib.suppress(OSError):
      stream.close()


def events(path):
  """Those of a TensorBoard file: length, its checksum, the event, its checksum, and so on."""
  data, at = path.read_bytes(), 0
  while at < len(data):
    (size,) = struct.unpack_from("<Q", data, at)
    yield Event.FromString(data[at + 12 : at + 12 + size])
    at += size + 16
