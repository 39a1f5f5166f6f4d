"""The checkpoints that a run writes: in the background, again after a failure, and some for good.

A save that fails (a full disk, storage that is out of reach) is told and the run goes on; what it
left is removed before the next one, which starts afresh. Only whole steps are ever found.
"""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

PATIENCE = 1200  # seconds that the processes wait for each other's part of a save
POLL = 0.05  # seconds
# Replicas share the writing of an array whose parts are at least so large. Orbax would cut every
# array, and compile a slice of each shape and place before the first save is off the devices.
SHARED_BYTES = 1 << 20

ocp.type_handlers.register_type_handler(
  jax.Array,
  ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SHARED_BYTES),
  override=True,
)


class Manager(ocp.CheckpointManager):
  """The loop asks when to stop: a second asker, on a thread, would confuse jax's count of steps."""

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


class Saver:
  """The checkpoints of one run. All processes call its methods at the same steps.

  Args:
    workdir: checkpoints/ lives there.
    keep: so many of the last are kept,
    keep_every: and each whose step is a multiple of this; 0 for none.
    say: is told what went wrong.
  """

  def __init__(
    self, workdir: Path, keep: int, keep_every: int = 0, say: Callable[[str], None] = print
  ):
    self.folder, self.say = workdir / "checkpoints", say
    policies: list[Any] = [preservation_policy.LatestN(keep)]
    if keep_every:
      policies.append(preservation_policy.EveryNSteps(keep_every))
    self.policy = preservation_policy.AnyPreservationPolicy(policies)
    self.opened, self.step, self.since, self.failed = 0, 0, 0.0, False
    self._open()

  def _open(self) -> None:
    """A manager of what is whole; removes what is not."""
    self.opened, self.failed = self.opened + 1, False
    self.errors: list[BaseException] = []  # of the background's
    if self.opened > 1 and jax.process_index() == 0:  # a failed save may still be writing there
      for half in self.folder.glob("*.orbax-checkpoint-tmp"):
        shutil.rmtree(half, ignore_errors=True)
    self.manager = Manager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self.policy,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
        async_options=ocp.options.AsyncOptions(
          timeout_secs=PATIENCE, barrier_sync_fn=_barrier(self.errors)
        ),
        multiprocessing_options=ocp.options.MultiprocessingOptions(
          barrier_sync_key_prefix=f"saver{self.opened}"  # a failed save may have left barriers
        ),
      ),
    )

  def latest(self) -> int | None:
    """The last complete step; the manager would count one whose save has failed."""
    return max(ocp.utils.checkpoint_steps(self.folder), default=None)

  def save(self, step: int, state, meta: dict) -> None:
    """Copies `state` (step, params, opt) off the devices and writes it in the background.

    Without a wait: while the save before is still being written, or where there is no room, it
    says so and returns.
    """
    busy, failed = _any_process(self._busy(), self.failed)
    if failed:
      self._open()
    elif busy:
      self.say(f"step {step} is not saved: step {self.step} is still being written")
      return
    need = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state.params, state.opt)))
    free = shutil.disk_usage(self.folder).free
    if _any_process(free < need)[0]:
      self.say(f"step {step} is not saved: {_gb(need)} do not fit the disk, {_gb(free)} are free")
      return
    items = ocp.args.Composite(
      params=ocp.args.StandardSave(state.params),
      opt=ocp.args.StandardSave(state.opt),
      meta=ocp.args.JsonSave(meta),
    )
    self.step, self.since = step, time.monotonic()
    try:
      self.manager.save(step, args=items, force=True)
    except Exception as e:  # whatever the storage raises
      self._tell(e)

  def _busy(self) -> bool:
    """Whether this process is still writing a save; tells of one that has failed."""
    if self.errors and not self.failed:
      self._tell(self.errors[0])
    if self.failed:
      return False
    if self.manager.is_saving_in_progress():
      if time.monotonic() - self.since > PATIENCE + 60:
        self._tell(TimeoutError("a process never ended its part"))
      return not self.failed
    try:
      self.manager.wait_until_finished()
    except Exception as e:  # whatever the storage raises
      self._tell(e)
    return False

  def _tell(self, error: BaseException) -> None:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    self.say(f"step {self.step} is not saved: {reason[:300]}")
    self.failed = True

  def wait(self) -> bool:
    """Waits for the save that is being written; False if it, or the one before, has failed.

    Nobody waits for the part of a process that has failed.
    """
    while True:
      busy, failed = _any_process(self._busy(), self.failed)
      if failed and not self.failed:
        self._tell(OSError("another process failed"))
      if failed or not busy:
        return not failed
      time.sleep(POLL)

  def restore(self, step: int, params, opt) -> tuple[Any, Any, dict]:
    """Abstract params and opt with shardings -> (params, opt, meta), on any mesh."""
    items = ocp.args.Composite(
      params=ocp.args.StandardRestore(params),
      opt=ocp.args.StandardRestore(opt),
      meta=ocp.args.JsonRestore(),
    )
    found = self.manager.restore(step, args=items)
    return found["params"], found["opt"], found["meta"]

  def close(self) -> None:
    if not self.failed:  # the others may be gone
      try:
        self.manager.close()
      except Exception as e:  # whatever the storage raises
        self._tell(e)


def _barrier(errors: list):
  """Orbax's barrier, but for a process whose part has failed: it says so, and waits for nobody."""
  wait = ocp.multihost.get_barrier_sync_fn()

  def barrier(*, key: str, timeout_ms: int) -> None:
    if error := sys.exc_info()[1]:
      errors.append(error)
      raise error
    wait(key=key, timeout_ms=timeout_ms)

  return barrier


def _any_process(*flags: bool) -> list[bool]:
  """For each flag, whether it is set on any process."""
  if jax.process_count() == 1:
    return list(flags)
  return multihost_utils.process_allgather(np.array(flags)).any(0).tolist()


def _gb(size: int) -> str:
  return f"{size / 1e9:.2f} GB"
