"""A process that hangs prints where each thread is and ends, whoever holds Python's lock."""

import subprocess
import sys

import pytest

SLEEPING = """
import threading, time
from tarjax.watchdog import Watchdog

def somewhere_else():
  time.sleep(60)

threading.Thread(target=somewhere_else, daemon=True).start()
dog = Watchdog(0.5, "process 1 of 2")
for _ in range(8):  # longer than the limit, but there is progress
  dog.beat()
  time.sleep(0.1)
dog.pause()
time.sleep(1)
dog.beat()
print("now it hangs", flush=True)
{hang}
"""


@pytest.mark.parametrize(
  "hang, code",
  [
    ("time.sleep(60)", 3),
    # re holds the lock for all of its search
    ("import re; re.match('(a*)*b', 'a' * 40)", 1),
  ],
)
def test_a_hang_ends_the_process(hang, code):
  script = "import tarjax.watchdog as w; w.GRACE = 0.2\n" + SLEEPING.format(hang=hang)
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
  assert done.returncode == code and done.stdout == "now it hangs\n"
  assert "somewhere_else" in done.stderr and 'File "<string>"' in done.stderr
  if code == 3:
    assert "process 1 of 2 has made no step for 0.5 s" in done.stderr


def test_zero_watches_nothing():
  script = SLEEPING.replace("Watchdog(0.5", "Watchdog(0").format(hang="time.sleep(1)")
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
  assert done.returncode == 0 and not done.stderr
