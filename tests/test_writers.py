"""Writers: what importing them brings along."""

import subprocess
import sys

SCRIPT = """
import sys
import tarjax.writers
assert "tensorboardX" in sys.modules and "torch" not in sys.modules
import torch
assert torch.Tensor
"""


def test_tensorboard_is_there_before_any_thread_and_torch_is_not():
  """Half of torch, imported by a thread, is found by others that look for it."""
  subprocess.run([sys.executable, "-c", SCRIPT], check=True)
