"""What is measured of a run: means over steps, rates, code usage, and where its time went."""

import collections
import contextlib
import json
import resource
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

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
    self.restart()

  def add(self, metrics: dict, *, waited: float, compiled: float, tokens: int = 0) -> None:
    """Device scalars of one step, seconds waited for its batch, seconds spent compiling."""
    self.steps.append(metrics)
    self.tokens += tokens
    self.wait_seconds += waited
    self.compile_seconds += compiled

  def blocked(self, seconds: float) -> None:
    """Seconds for which the host waited for the devices."""
    self.blocked_seconds += seconds

  def restart(self) -> None:
    """Forgets the steps and the time since the last read."""
    self.steps: list[dict] = []
    self.compile_seconds = self.wait_seconds = self.blocked_seconds = 0.0
    self.tokens = 0
    self.since = time.perf_counter()

  def read(self) -> dict[str, float]:
    """Means over the steps since the last read, rates and code usage; waits for the last step.

    Skipped steps are in no mean, unless all are. With several processes: the spread of their times
    for a step, of what they did on their own in it, and which of them had the most to do.
    """
    waiting = time.perf_counter()
    steps = jax.device_get(self.steps)
    now = time.perf_counter()
    elapsed = max(now - self.since - self.compile_seconds, 1e-9)
    own = max(elapsed - self.blocked_seconds - (now - waiting), 0.0)
    for step in steps:
      if "codes" in step:
        self.usage.add(step.pop("codes"))
    good = [s for s in steps if not s["skipped"]] or steps
    values = {name: float(np.mean([s[name] for s in good])) for name in steps[-1]}
    values["lr"] = float(steps[-1]["lr"])
    values["skipped"] = float(sum(s["skipped"] for s in steps))
    values |= self.usage.values()
    values["steps_per_second"] = len(steps) / elapsed
    values["samples_per_second"] = len(steps) * self.batch / elapsed
    if self.tokens:
      values["tokens_per_second"] = self.tokens / elapsed
    values["data_wait"] = self.wait_seconds / elapsed
    values["compile_seconds"] = self.compile_seconds
    values |= _spread(elapsed / len(steps), own / len(steps))
    self.restart()
    return values


def _spread(step: float, own: float) -> dict[str, float]:
  """Seconds for a step, and for what the host did in it -> their range over the processes."""
  if jax.process_count() == 1:
    return {}
  all_of = multihost_utils.process_allgather(np.array([step, own], np.float32))  # [process 2]
  low, high = all_of.min(0), all_of.max(0)
  return {
    "step_seconds_min": float(low[0]),
    "step_seconds_max": float(high[0]),
    "host_seconds_min": float(low[1]),
    "host_seconds_max": float(high[1]),
    "slowest_host": float(all_of[:, 1].argmax()),
  }


class Clock:
  """What the time of a run went into, and peak memory, added up over its restarts in timing.json.

  "step" is the loop but for what is timed apart in it; "idle" is all the rest: start, restore, end.
  """

  PARTS = ("step", "compile", "data", "save", "eval", "idle")

  def __init__(self, workdir: Path, began: float):
    self.path, self.began = workdir / "timing.json", began
    self.spent: dict[str, float] = dict.fromkeys(self.PARTS, 0.0)
    self.loop: float | None = None
    self.before: dict[str, Any] = {"seconds": 0.0, "peak_gb": 0.0}
    if self.path.is_file():
      self.before |= json.loads(self.path.read_text())

  def start(self) -> None:
    """The loop begins."""
    self.loop = time.time()

  def add(self, part: str, seconds: float) -> None:
    self.spent[part] += seconds

  @contextlib.contextmanager
  def during(self, part: str):
    began = time.perf_counter()
    yield
    self.add(part, time.perf_counter() - began)

  def read(self, step: int) -> dict:
    """{"seconds", "steps", "peak_gb", "spent"} so far; also written to timing.json."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in kB
    here, parts = time.time() - self.began, dict(self.spent)
    if self.loop is not None:
      parts["idle"] = self.loop - self.began
      parts["step"] = max(here - sum(parts.values()), 0.0)
    else:
      parts["idle"] = here
    old = self.before.get("spent", {})
    now = {
      "seconds": round(self.before["seconds"] + here, 2),
      "steps": step,
      "peak_gb": round(max(self.before["peak_gb"], peak), 3),
      "spent": {name: round(old.get(name, 0.0) + x, 2) for name, x in parts.items()},
    }
    if jax.process_index() == 0:
      with contextlib.suppress(OSError):  # a full disk
        write_json(self.path, now)
    return now


def goodput(timing: dict) -> str:
  """ "step 81%, compile 12%, data 2%, ..." of a `Clock.read`."""
  total = max(sum(timing["spent"].values()), 1e-9)
  return ", ".join(f"{name} {x / total:.0%}" for name, x in timing["spent"].items())
