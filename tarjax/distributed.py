"""One run on several processes: how they find each other, compile, stop at one step, and end.

A launcher says that there are several. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID tell who they are (launch/local.sh); under TARJAX_DISTRIBUTED=1 jax finds out what of
it is not set from Slurm, Kubernetes or the TPU VM.
"""

import os
import signal
import sys
import time
from typing import Any

WAIT = 300  # seconds for all processes to come, or to leave
GRACE = 2.0  # seconds
COMPILE = 24 * 3600  # seconds that a program may take to compile


def start(stop: list[int]) -> None:
  """Joins the other processes, if there are any. To be called before anything asks for devices.

  A signal that has come, or that comes while it waits for the others, ends the process at once:
  there is nothing to save. From then on jax listens to SIGTERM.
  """
  env = os.environ
  if "JAX_COORDINATOR_ADDRESS" not in env and env.get("TARJAX_DISTRIBUTED", "0") == "0":
    return
  import jax
  from jax.experimental import multihost_utils

  count, index = (
    int(env[name]) if name in env else None for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
  )
  for number in (signal.SIGTERM, signal.SIGINT):  # Python's own would wait as long as jax does
    signal.signal(number, signal.SIG_DFL)
  if stop:
    os.kill(os.getpid(), stop[0])
  known = "JAX_COORDINATOR_ADDRESS" in env and None not in (count, index)
  jax.distributed.initialize(
    num_processes=count,
    process_id=index,
    cluster_detection_method="deactivate" if known else None,
    initialization_timeout=WAIT,
    shutdown_timeout_seconds=WAIT,
  )
  # A SIGTERM before the first of these calls would be lost.
  multihost_utils.reached_preemption_sync_point(0)
  signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
  if jax.default_backend() == "cpu":
    # There only the first process finds what it compiled before. The collectives of a program from
    # the cache need not run in the order of one that was just made, and gloo takes any for any.
    jax.config.update("jax_enable_compilation_cache", False)


def compile_together(program: Any, *args) -> None:
  """Compiles a jitted program for its arguments, and returns when all processes have it.

  One may take longer than another, and collectives do not wait long: those of CPUs give a process
  up after 30 seconds.
  """
  import jax

  if not jax.distributed.is_initialized():
    return
  import orbax.checkpoint as ocp

  program.lower(*args).compile()
  ocp.multihost.get_barrier_sync_fn()(key="compiled", timeout_ms=COMPILE * 1000)


class Stop:
  """Says before each step whether a signal has come, to any process; at one step on all."""

  def __init__(self, signals: list[int]):
    import jax

    self.signals, self.many, self.calls = signals, jax.distributed.is_initialized(), 0

  def __call__(self) -> bool:
    if not self.many:
      return bool(self.signals)
    from jax.experimental import multihost_utils

    self.calls += 1
    return multihost_utils.reached_preemption_sync_point(self.calls)

  @property
  def code(self) -> int:
    """The exit code of a run that was stopped."""
    return 128 + (self.signals[0] if self.signals and not self.many else signal.SIGTERM)


def leave(code: int, together: bool) -> int:
  """Ends this process; alone or after a failure nobody waits for the others, and `code` returns.

  Args:
    code: exit code.
    together: whether the other processes end here too, and may be waited for.
  """
  jax = sys.modules.get("jax")
  if jax and jax.distributed.is_initialized():
    if together:
      jax.distributed.shutdown()
    elif jax.process_index() == 0:
      time.sleep(GRACE)  # the others, which cannot be without it, may have something to say too
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # jax would wait for the others, and Python for threads that wait for them
  return code
