"""What a run says about itself: JSONL and TensorBoard scalars, one progress line, timing.

metrics.jsonl has one line per logged step, also after a run was killed and resumed: lines past
the restored step are cut off when it starts again.
"""

import collections
import concurrent.futures
import json
import resource
import sys
import time
from pathlib import Path

import jax
import numpy as np

from tarjax.config import write_json

WINDOW = 65_536  # code assignments over which usage and perplexity are counted


class CodeUsage:
  """Distinct codes and perplexity over a sliding window of the last `window` assignments."""

  def __init__(self, codes: int | None, window: int = WINDOW):
    self.codes, self.window = codes, window
    self.parts: collections.deque[np.ndarray] = collections.deque()
    self.size = 0

  def add(self, indices) -> None:
    """int[...] of any shape, oldest first."""
    part = np.asarray(indices).reshape(-1)[-self.window :]
    self.parts.append(part)
    self.size += part.size
    while self.size - self.parts[0].size >= self.window:
      self.size -= self.parts.popleft().size

  def values(self) -> dict[str, float]:
    """codes_used, codes_perplexity = exp(-sum p log p), and codes_usage when K is known."""
    if not self.size:
      return {}
    _, counts = np.unique(np.concatenate(self.parts)[-self.window :], return_counts=True)
    p = counts / counts.sum()
    values = {"codes_used": len(counts), "codes_perplexity": float(np.exp(-(p * np.log(p)).sum()))}
    return values | ({"codes_usage": len(counts) / self.codes} if self.codes else {})


class Meter:
  """Collects the metrics of the steps since the last log line, on the devices until then."""

  def __init__(self, batch: int, codes: int | None):
    self.batch, self.usage = batch, CodeUsage(codes)
    self.steps: list[dict] = []
    self.compile_seconds = self.wait_seconds = 0.0
    self.since = time.perf_counter()

  def add(self, metrics: dict, *, waited: float, compiled: float) -> None:
    """Device scalars of one step, seconds waited for its batch, seconds spent compiling."""
    self.steps.append(metrics)
    self.wait_seconds += waited
    self.compile_seconds += compiled

  def restart(self) -> None:
    """Leaves the time since the last read, which was not training, out of the rate."""
    self.since = time.perf_counter()

  def read(self) -> dict[str, float]:
    """Means over the steps since the last read, rates and code usage; waits for the last step."""
    steps = jax.device_get(self.steps)
    elapsed = max(time.perf_counter() - self.since - self.compile_seconds, 1e-9)
    for step in steps:
      if "codes" in step:
        self.usage.add(step.pop("codes"))
    values = {name: float(np.mean([s[name] for s in steps])) for name in steps[-1]}
    values["lr"] = float(steps[-1]["lr"])
    values |= self.usage.values()
    values["steps_per_second"] = len(steps) / elapsed
    values["samples_per_second"] = len(steps) * self.batch / elapsed
    values["data_wait"] = self.wait_seconds / elapsed
    values["compile_seconds"] = self.compile_seconds
    self.steps, self.compile_seconds, self.wait_seconds = [], 0.0, 0.0
    self.restart()
    return values


class Writer:
  """metrics.jsonl and TensorBoard files of a workdir, continued after step `start`."""

  def __init__(self, workdir: Path, start: int):
    path = workdir / "metrics.jsonl"
    kept = []
    for line in path.read_text().splitlines() if path.is_file() else []:
      try:
        kept += [line] if json.loads(line)["step"] <= start else []
      except (ValueError, KeyError):  # the line that a kill cut short
        continue
    new = path.with_suffix(".new")
    new.write_text("".join(line + "\n" for line in kept))
    new.replace(path)
    self.file = open(path, "a")  # noqa: SIM115
    self.pool = concurrent.futures.ThreadPoolExecutor(1)  # TensorBoard never delays a step
    self.board = self.pool.submit(_open_board, workdir, start)

  def write(self, step: int, values: dict[str, float]) -> None:
    """One line per step; a value that is not finite is written as null."""
    line = {k: v if np.isfinite(v) else None for k, v in values.items()}
    self.file.write(json.dumps({"step": step} | line) + "\n")
    self.file.flush()
    self.pool.submit(_write_board, self.board, step, values)

  def close(self) -> None:
    self.file.close()
    self.pool.submit(lambda: self.board.result().close())
    self.pool.shutdown()


def _open_board(workdir: Path, start: int):
  from tensorboardX import SummaryWriter  # slow to import: done here, while the step compiles

  return SummaryWriter(str(workdir), purge_step=start + 1)


def _write_board(board, step: int, values: dict[str, float]) -> None:
  for name, value in values.items():
    board.result().add_scalar(name, value, step)


class Progress:
  """One line: rewritten in place on a terminal, a new one per log step elsewhere."""

  def __init__(self, name: str, steps: int, stream=None):
    self.name, self.steps = name, steps
    self.stream = stream or sys.stdout
    self.tty = self.stream.isatty()

  def show(self, step: int, values: dict[str, float]) -> None:
    left = (self.steps - step) / values["steps_per_second"]
    val = f"  val {values['val/loss']:.4g}" if "val/loss" in values else ""
    text = (
      f"{self.name} {step}/{self.steps}  loss {values['loss']:.4g}{val}  "
      f"{values['steps_per_second']:.2f} steps/s  {values['samples_per_second']:.0f} samples/s  "
      f"data wait {values['data_wait']:.0%}  ETA {int(left) // 60}:{int(left) % 60:02d}"
    )
    self.stream.write(f"\r\x1b[2K{text}" if self.tty else text + "\n")
    self.stream.flush()

  def say(self, text: str) -> None:
    """A line of its own."""
    self.stream.write(("\r\x1b[2K" if self.tty else "") + text + "\n")
    self.stream.flush()


class Clock:
  """Seconds and peak memory of a run, added up over its restarts in timing.json."""

  def __init__(self, workdir: Path, began: float):
    self.path, self.began = workdir / "timing.json", began
    self.before = {"seconds": 0.0, "peak_gb": 0.0}
    if self.path.is_file():
      self.before |= json.loads(self.path.read_text())

  def read(self, step: int) -> dict:
    """{"seconds", "steps", "peak_gb"} so far; also written to timing.json."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in kB
    now = {
      "seconds": round(self.before["seconds"] + time.time() - self.began, 2),
      "steps": step,
      "peak_gb": round(max(self.before["peak_gb"], peak), 3),
    }
    write_json(self.path, now)
    return now
