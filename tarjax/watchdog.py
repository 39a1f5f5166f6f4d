"""Ends a process whose step hangs, after printing where each of its threads is.

When one process of many stops making progress, all others wait for it inside a collective, for
ever. Each watches itself, so that the stacks of all are printed before the first one ends.
"""

import faulthandler
import os
import sys
import threading
import time

HUNG = 3  # exit code
STDERR = 2
GRACE = 3.0  # seconds between printing and ending, in which the other processes print


class Watchdog:
  """`beat` says that there is progress; `pause`, that none is expected until the next beat.

  Args:
    seconds: the longest time between two beats; 0 watches nothing.
    name: of this process, for the message.
  """

  def __init__(self, seconds: float, name: str):
    self.seconds, self.name = seconds, name
    self.last: float | None = None
    self.closed = threading.Event()
    faulthandler.enable(STDERR)  # a crash, or jax's abort when another process is gone
    if seconds:
      threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

  def beat(self) -> None:
    if self.seconds:
      self.last = time.monotonic()
      # For code that hangs with Python's lock in its hands: this timer needs no lock.
      faulthandler.dump_traceback_later(self.seconds + 3 * GRACE, file=STDERR, exit=True)

  def pause(self) -> None:
    self.last = None
    if self.seconds:
      faulthandler.cancel_dump_traceback_later()

  def close(self) -> None:
    self.pause()
    self.closed.set()

  def _watch(self) -> None:
    while not self.closed.wait(min(self.seconds / 4, 1.0)):
      last = self.last
      if last is not None and time.monotonic() - last > self.seconds:
        print(
          f"error: {self.name} has made no step for {self.seconds:g} s (config.hang_seconds); "
          "its threads are here:",
          file=sys.stderr,
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(STDERR)
        time.sleep(GRACE)
        os._exit(HUNG)
