"""Steps whose loss or gradient is not finite: `train_step` skips them, this counts and lists them.

WORKDIR/nonfinite.jsonl has a line for each: step, number of the batch, loss, gradient norm, and the
ids of the batch's samples.
"""

import json
from collections.abc import Callable
from pathlib import Path

FILE = "nonfinite.jsonl"
REWINDS = 3  # to one save, before the run gives up


class Diverged(Exception):
  """Too many losses or gradients in a row are not finite; `code` is the exit code of the run."""

  code = 1


class NonFinite:
  """Looks at each step in order.

  Args:
    workdir: where the list lives.
    limit: so many skipped steps in a row are too many.
    then: "stop", or "rewind" to the last save.
    ids: number of a batch -> the ids of its samples.
    say: is told of each step.
    write: whether this process writes the list.
  """

  def __init__(
    self,
    workdir: Path,
    limit: int,
    then: str,
    ids: Callable[[int], list[str]],
    say: Callable[[str], None],
    write: bool = True,
  ):
    self.write = write
    self.path, self.limit, self.then, self.ids, self.say = workdir / FILE, limit, then, ids, say
    self.row = 0  # skipped steps up to the last one seen
    self.rewinds: dict[int, int] = {}  # by the step of the save
    self.listed = set()  # after a restart the same steps come again
    for line in self.path.read_text().splitlines() if self.path.is_file() else []:
      try:
        seen = json.loads(line)
      except ValueError:  # the line that a kill cut short
        continue
      self.listed.add((seen["step"], seen["batch"]))

  @property
  def too_many(self) -> bool:
    return self.row >= self.limit

  def look(self, step: int, batch: int, values: dict) -> None:
    """Waits for step number `step`, which read batch number `batch`."""
    if not bool(values["skipped"]):
      self.row = 0
      return
    self.row += 1
    loss, norm = (float(values[name]) for name in ("loss", "grad_norm"))
    self.say(f"step {step} is skipped: loss {loss:g}, gradient norm {norm:g}: see {self.path}")
    if self.write and (step, batch) not in self.listed:
      self.listed.add((step, batch))
      line = {"step": step, "batch": batch, "loss": str(loss), "grad_norm": str(norm)}
      text = json.dumps(line | {"ids": self.ids(batch)})
      try:
        with open(self.path, "a") as f:
          f.write(text + "\n")
      except OSError as e:
        self.say(f"{self.path} cannot be written: {e.strerror}: {text}")

  def rewind(self, step: int, last: int | None) -> None:
    """To be called when there are too many, with the step of the last save.

    Raises:
      Diverged: the run is to stop.
    """
    count = self.rewinds[last or 0] = self.rewinds.get(last or 0, 0) + 1
    what = f"the loss or gradient of {self.row} steps in a row, up to {step}, is not finite"
    if self.then == "stop" or count > REWINDS:
      again = f", again after {REWINDS} rewinds" if self.then != "stop" else ""
      raise Diverged(f"{what}{again}: lower optim.lr or look at the samples in {self.path}")
    self.say(f"{what}: back to step {last or 0}, with the batches after these")
    self.row = 0
