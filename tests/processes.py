"""Several real processes that run one script."""

import json
import os
import subprocess
import sys
from pathlib import Path

LOCAL = Path(__file__).parent.parent / "launch" / "local.sh"


def told_by(script: str, home: Path, count: int = 2, **more: str) -> list[dict]:
  """What each process of `script HOME` left in HOME/INDEX.json, once all have ended well.

  Args:
    more: of the environment.
  """
  command = ["bash", LOCAL, "-n", str(count), "--", script, str(home)]
  env = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"} | more
  done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
  assert done.returncode == 0, done.stderr
  return [json.loads((home / f"{i}.json").read_text()) for i in range(count)]
