"""What a run says about itself: JSONL, TensorBoard and wandb scalars, and one progress line.

metrics.jsonl has one line per logged step, also after a run was killed and resumed: lines past
the restored step are cut off when it starts again.
"""

import concurrent.futures
import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from tarjax.config import UserError


class Writer:
  """metrics.jsonl and TensorBoard files of a workdir, continued after step `start`.

  Of several processes the first one writes.

  Args:
    workdir: of the run.
    start: the step that the run is at.
    project: of wandb; "" for none.
    config: that wandb shows.
  """

  def __init__(self, workdir: Path, start: int, project: str = "", config: dict | None = None):
    self.workdir, self.on = workdir, jax.process_index() == 0
    self.pool = concurrent.futures.ThreadPoolExecutor(1)  # TensorBoard never delays a step
    self.wandb = _open_wandb(workdir, project, config) if project and self.on else None
    if self.on:
      self._open(start)

  def _open(self, start: int) -> None:
    path = self.workdir / "metrics.jsonl"
    kept = []
    for line in path.read_text().splitlines() if path.is_file() else []:
      try:
        kept += [line] if json.loads(line)["step"] <= start else []
      except (ValueError, KeyError):  # the line that a kill cut short
        continue
    new = path.with_suffix(".new")
    new.write_text("".join(line + "\n" for line in kept))
    new.replace(path)
    self.file = Patient(path)
    self.board = self.pool.submit(_open_board, self.workdir, start)

  def write(self, step: int, values: dict[str, float]) -> None:
    """One line per step; a value that is not finite is written as null."""
    if not self.on:
      return
    line = {k: v if np.isfinite(v) else None for k, v in values.items()}
    self.file.write((json.dumps({"step": step} | line) + "\n").encode())
    self.pool.submit(_write_board, self.board, step, values)
    if self.wandb:
      self.pool.submit(self.wandb.log, values, step=step)

  def rewind(self, step: int) -> None:
    """The run goes back to `step`: so do the files."""
    if self.on:
      self._close()
      self._open(step)

  def _close(self) -> None:
    self.file.close()
    self.pool.submit(_close_board, self.board)  # this one: a rewind opens another before it runs

  def close(self) -> None:
    if self.on:
      self._close()
    if self.wandb:
      self.pool.submit(self.wandb.finish)
    self.pool.shutdown()


class Patient:
  """A file to append to. What a full disk does not take stays in memory until it does."""

  def __init__(self, path: str | Path):
    self.file, self.left = open(path, "ab", buffering=0), b""

  def write(self, data: bytes) -> None:
    self.left += data
    with contextlib.suppress(OSError):
      while self.left:
        self.left = self.left[self.file.write(self.left) :]

  def flush(self) -> None:
    self.write(b"")

  def close(self) -> None:
    self.flush()
    with contextlib.suppress(OSError):
      self.file.close()


class _PatientFiles:
  """How tensorboardX opens files named "patient:PATH": its thread ends with the first failure."""

  def open(self, path: str) -> Patient:
    return Patient(path.removeprefix("patient:"))

  def directory_check(self, path: str) -> None:
    """The workdir is there."""


def _open_wandb(workdir: Path, project: str, config: dict | None):
  try:
    import wandb  # type: ignore
  except ImportError as e:
    raise UserError(f"config.wandb={project!r} needs wandb: pip install wandb") from e
  name = re.sub(r"[^a-zA-Z0-9_-]", "-", f"{workdir.parent.name}-{workdir.name}")
  return wandb.init(
    project=project, id=name, name=name, dir=str(workdir), config=config, resume="allow"
  )


def _summary_writer() -> Any:
  """TensorBoard's writer, imported without torch.

  Where torch is installed, tensorboardX imports it, for seconds in which other threads that ask
  whether it is there (etils does) find half of it.
  """
  hidden = "torch" not in sys.modules
  if hidden:
    sys.modules["torch"] = cast(Any, None)
  try:
    from tensorboardX import SummaryWriter, record_writer
  finally:
    if hidden:
      del sys.modules["torch"]
  record_writer.register_writer_factory("patient", _PatientFiles())
  return SummaryWriter


SummaryWriter = _summary_writer()  # before any thread is started


def _open_board(workdir: Path, start: int):
  return SummaryWriter(f"patient:{workdir}", purge_step=start + 1)


def _close_board(board) -> None:
  board.result().close()


def _write_board(board, step: int, values: dict[str, float]) -> None:
  for name, value in values.items():
    board.result().add_scalar(name, value, step)


class Progress:
  """One line: rewritten in place on a terminal, a new one per log step elsewhere.

  Of several processes the first one speaks.
  """

  def __init__(self, name: str, steps: int, stream=None):
    self.name, self.steps = name, steps
    self.stream = stream or sys.stdout
    self.tty, self.on = self.stream.isatty(), jax.process_index() == 0

  def show(self, step: int, values: dict[str, float]) -> None:
    left = (self.steps - step) / values["steps_per_second"]
    parts = [f"{self.name} {step}/{self.steps}", f"loss {values['loss']:.4g}"]
    parts[1] += f" val {values['val/loss']:.4g}" if "val/loss" in values else ""
    parts.append(f"{values['steps_per_second']:.2f} steps/s")
    unit = "tokens" if "tokens_per_second" in values else "samples"
    parts.append(f"{values[unit + '_per_second']:.0f} {unit}/s")
    parts.append(f"data wait {values['data_wait']:.0%}")
    if values.get("skipped"):
      parts.append(f"{values['skipped']:.0f} skipped")
    parts.append(f"ETA {int(left) // 60}:{int(left) % 60:02d}")
    text = "  ".join(parts)
    self._print(f"\r\x1b[2K{text}" if self.tty else text + "\n")

  def say(self, text: str) -> None:
    """A line of its own."""
    self._print(("\r\x1b[2K" if self.tty else "") + text + "\n")

  def _print(self, text: str) -> None:
    if self.on:
      with contextlib.suppress(OSError):  # a log on a full disk, a reader that is gone
        self.stream.write(text)
        self.stream.flush()
