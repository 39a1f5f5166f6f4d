"""Damaged records: where they are, the list of them, and the point at which they are too many.

A source raises `Damaged` for a record that nobody can use. Whoever reads the source goes on without
it and tells a `Quarantine`, which lists it in WORKDIR/quarantine.jsonl and stops the run when more
records are damaged than the config allows.
"""

import contextlib
import errno
import fcntl
import json
import math
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

FILE = "quarantine.jsonl"
GONE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)
DEVIATIONS = 4  # that the number of damaged records may lie above its limit by chance
FEWEST = 100  # reads; of fewer, a share says little


class Damaged(ValueError):
  """A record that cannot be used; `unit` says what `offset` counts: record, row or byte."""

  def __init__(self, file: str, offset: int, reason: str, unit: str = "record"):
    super().__init__(file, offset, reason, unit)  # all of them, for pickle
    self.file, self.offset, self.reason, self.unit = file, offset, reason, unit

  def __str__(self) -> str:
    return f"{self.unit} {self.offset} of {self.file} is damaged: {self.reason}"


class TooManyDamaged(ValueError):
  """More damaged records than the config allows."""


@contextlib.contextmanager
def located(file: str | Path, offset: int, unit: str = "record") -> Iterator[None]:
  """Turns what reading a record raises into `Damaged`.

  An error of the machine (no permission, a disk or network that fails) passes: with the record
  skipped for it, the samples of a step would depend on luck.
  """
  try:
    yield
  except Damaged:
    raise
  except Exception as e:  # parsers raise all kinds on damage
    if isinstance(e, OSError) and e.errno not in GONE:
      raise
    missing = f"the key {e} is missing" if isinstance(e, KeyError) else ""
    raise Damaged(str(file), int(offset), missing or str(e) or type(e).__name__, unit) from e


class Quarantine:
  """Counts what is read and lists what is damaged.

  Each line of the list is {"file", "offset", "unit", "reason"}. A record is listed once, however
  often it is met, by whichever process and after whichever restart.

  Args:
    workdir: where the list lives.
    limit: the share of damaged records that is put up with, e.g. 0.01. It is held against the
      reads of this process since its start, with room for chance: a share equal to the limit does
      not stop the run, and one well above it does so after some dozens of reads.
  """

  def __init__(self, workdir: str | Path, limit: float):
    if not 0 <= limit <= 1:
      raise ValueError(f"config.data.max_damaged is a share between 0 and 1, not {limit}")
    self.path, self.limit = Path(workdir) / FILE, limit
    self.reads = self.damaged = 0
    self._lock = threading.Lock()
    self._listed: set[tuple[str, int]] = set()
    self._known = 0  # bytes of the list that `_listed` covers

  def __reduce__(self):
    return Quarantine, (self.path.parent, self.limit)  # a worker process counts on its own

  def passed(self) -> None:
    """One more record was read and is good."""
    with self._lock:
      self.reads += 1

  def add(self, record: Damaged) -> None:
    """One more record was read and is damaged.

    Raises:
      TooManyDamaged: more than `limit` allows.
    """
    with self._lock:
      self.reads += 1
      self.damaged += 1
      self._list(record)
      chance = math.sqrt(self.limit * max(self.reads, FEWEST))
      if self.damaged > self.limit * self.reads + DEVIATIONS * chance:
        raise TooManyDamaged(
          f"{self.damaged} of {self.reads} records read are damaged, more than max_damaged="
          f"{self.limit:g} allows; they are listed in {self.path}, the last one: {record}"
        )

  def _list(self, record: Damaged) -> None:
    """Appends to the list what is not there yet."""
    if (record.file, record.offset) in self._listed:
      return
    line = {k: getattr(record, k) for k in ("file", "offset", "unit", "reason")}
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      with open(self.path, "a+b") as file:
        with contextlib.suppress(OSError):  # not every file system has locks
          fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(self._known)
        there = file.read()
        self._listed |= {(entry["file"], entry["offset"]) for entry in _parse(there)}
        if (record.file, record.offset) not in self._listed:
          start = b"\n" if there and not there.endswith(b"\n") else b""
          file.write(start + json.dumps(line).encode() + b"\n")
        self._known = file.tell()
    except OSError as e:  # a full disk must not end the run
      print(f"warning: {self.path} cannot be written ({e.strerror}): {record}", file=sys.stderr)
    self._listed.add((record.file, record.offset))


def listed(workdir: str | Path) -> list[dict]:
  """What the list of a workdir holds."""
  path = Path(workdir) / FILE
  return _parse(path.read_bytes()) if path.is_file() else []


def _parse(data: bytes) -> list[dict]:
  """Lines of the list; one that a killed process left unfinished is passed over."""
  entries = []
  for line in data.splitlines():
    with contextlib.suppress(ValueError):
      entry = json.loads(line)
      entries += [entry] if isinstance(entry, dict) and {"file", "offset"} <= entry.keys() else []
  return entries
