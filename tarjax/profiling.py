"""A trace of some steps for xprof: `config.profile_steps="a:b"` covers steps a+1 to b."""

from pathlib import Path

import jax


class Trace:
  """To be told the step before each step; writes WORKDIR/plugins/profile, of the first process."""

  def __init__(self, steps: tuple[int, int] | None, workdir: Path):
    self.steps, self.workdir, self.running = steps, workdir, False

  def at(self, step: int, state) -> None:
    """`step` steps have been started and `state` is what comes of them."""
    if not self.steps or jax.process_index():
      return
    if not self.running and step == self.steps[0]:
      jax.block_until_ready(state)
      jax.profiler.start_trace(str(self.workdir))
      self.running = True
    elif self.running and step >= self.steps[1]:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    if self.running:
      self.running = False
      jax.profiler.stop_trace()
