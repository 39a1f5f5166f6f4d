"""Writers: what importing them brings along, and a TensorBoard file that is slow to close."""

import json
import subprocess
import sys
import threading

from tarjax.writers import Writer

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
