"""Makes what a table of the paper needs: trains what is missing, then scores.

  python -m tarjax.ablate configs/ablations/scales.py --mini --base runs/digits --out runs/scales

launch/ablation.sh calls it. Each run is a process of its own, whose words go to
OUT/FOLDER/STAGE.log; one that crashes is recorded with its last lines in STAGE.failed.json, and the
others go on. Call it again after anything: what is done stays, what crashed is tried again. Several
callers on one OUT, on one machine or many, share the runs: who works on one holds STAGE.lock, until
neither the caller nor the run is alive. (Locks must reach as far as OUT does: NFS has them, gcsfuse
has not; there, --only gives each caller rows of its own.)

Exit codes: 0 all rows are made (a row that does not converge is one), 1 a run crashed, 2 a mistake
in the command or a page, 143 stopped by a signal.
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tarjax import ablations
from tarjax.ablations import State, Table
from tarjax.collapse import Collapsed
from tarjax.config import UserError, differences, parse, write_json

ROOT = Path(__file__).parent.parent
TAIL = 20  # lines of a log that are kept of a crash
WAIT = 2.0  # seconds between looks at what others are doing


def arguments(argv: list[str]) -> argparse.Namespace:
  about = (__doc__ or "").splitlines()[0]
  parser = argparse.ArgumentParser(prog="tarjax.ablate", description=about)
  parser.add_argument("page", help="a file of configs/ablations/")
  parser.add_argument("--mini", action="store_true", help="its twin on digits")
  parser.add_argument("--base", required=True, help="folder of what was trained before")
  parser.add_argument("--out", required=True, help="folder of the table")
  parser.add_argument("--only", help="rows, comma-separated")
  parser.add_argument("--data", default="", help="folder of the benchmarks' data sets")
  parser.add_argument("--dry-run", action="store_true", help="print what would be run")
  parser.add_argument("--plan", metavar="TOPOLOGY", help="print the commands that plan the rows")
  return parser.parse_args(argv)


class Caller:
  """One of the processes that make a table."""

  def __init__(self, table: Table, out: Path, base: Path, data: str):
    self.table, self.out, self.base, self.data = table, out, base, data
    self.stopped: list[int] = []
    self.child: subprocess.Popen | None = None
    self.began = 0.0

  def command(self, key: str) -> list[str]:
    run, path = self.table.run(key), self.out / key
    places = {"run": path, "folder": path.parent, "data": self.data}
    return [sys.executable, "-m", run.module, *(w.format(**places) for w in run.arguments)]

  def start(self) -> None:
    """From now on what crashed before is tried again. The clock is that of OUT's file system."""
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self.stop)
    mark = self.out / f".started-{os.getpid()}"
    mark.touch()
    self.began = mark.stat().st_mtime
    mark.unlink()

  def stop(self, number: int, _) -> None:
    self.stopped.append(number)
    if self.child:
      self.child.send_signal(signal.SIGTERM)

  def state(self, key: str) -> State:
    """A crash that is older than this caller is none."""
    found = ablations.state(self.table, self.out, key)
    with suppress(FileNotFoundError):  # another tries it again
      failed = ablations.failed_file(self.out, key)
      if found == State.CRASHED and failed.stat().st_mtime < self.began:
        return State.MISSING
    return found

  def work(self, keys: Sequence[str]) -> int:
    """Makes runs, given in an order in which they can be made; -> the exit code."""
    while not self.stopped:
      states = {key: self.state(key) for key in keys}
      left = [key for key, state in states.items() if state == State.MISSING]
      done = [key for key, state in states.items() if state == State.DONE]
      never = blocked(self.table, states)
      left = [key for key in left if key not in never]
      if not left:
        crashed = [key for key, state in states.items() if state == State.CRASHED]
        for key in crashed:
          print(f"crashed: {key}, see {self.out / key}.log", flush=True)
        return 1 if crashed else 0
      ready = [key for key in left if set(self.table.needed(key)) <= set(done)]
      if not any(self.make(key) for key in ready):
        time.sleep(WAIT)  # others are at work on them
    return 128 + signal.SIGTERM

  def make(self, key: str) -> bool:
    """Makes a run, unless another is at it or did it; -> whether there is something new."""
    with claimed(self.out / f"{key}.lock") as lock:
      if lock is None or self.stopped:
        return bool(self.stopped)
      if self.state(key) == State.MISSING:
        failed = ablations.failed_file(self.out, key)
        failed.unlink(missing_ok=True)
        began = time.time()
        print(f"{key}: began", flush=True)
        code = self.run(key, lock)
        done = (self.out / key / self.table.run(key).done).is_file()
        if not done and not self.stopped:
          verdict = "not converged" if code == Collapsed.code else "crashed"
          write_json(failed, {"verdict": verdict, "code": code, "tail": tail(self.out, key)})
          print(f"{key}: {verdict} after {time.time() - began:.0f} s, exit code {code}", flush=True)
        elif done:
          print(f"{key}: done, {time.time() - began:.0f} s", flush=True)
      return True

  def run(self, key: str, lock: int) -> int:
    """The run's process, which keeps the lock as long as it lives."""
    (self.out / key).mkdir(exist_ok=True)
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    env.setdefault("JAX_COMPILATION_CACHE_DIR", str(self.out / ".jax_cache"))
    with open(self.out / f"{key}.log", "a") as log:
      self.child = subprocess.Popen(
        self.command(key), cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        pass_fds=(lock,), start_new_session=True,
      )  # fmt: skip
    if self.stopped:  # a signal came while it was being made
      self.child.send_signal(signal.SIGTERM)
    code = self.child.wait()
    self.child = None
    return code


@contextmanager
def claimed(path: Path) -> Iterator[int | None]:
  """The descriptor of a lock that is now held, or None when another holds it."""
  with open(path, "a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield None
    else:
      yield file.fileno()


def blocked(table: Table, states: dict[str, State]) -> set[str]:
  """Runs that need one that crashed or did not converge, directly or not."""
  ends = (State.CRASHED, State.NOT_CONVERGED)
  found: set[str] = set()
  for key in states:  # what is needed comes first
    if any(need in found or states[need] in ends for need in table.needed(key)):
      found.add(key)
  return found


def tail(out: Path, key: str) -> list[str]:
  """The last lines of a run's log; of a bar that overwrites itself, only its end."""
  with suppress(OSError):
    text = (out / f"{key}.log").read_text(errors="replace")
    return [line.rpartition("\r")[2] for line in text.rstrip().split("\n")[-TAIL:]]
  return []


def lay_out(table: Table, keys: Sequence[str], out: Path, base: Path) -> None:
  """The folders, with links to what is not their own and bundle.json.

  Raises:
    UserError: a stage that BASE lacks, or a link that leads elsewhere.
  """
  for stage in table.of_base(keys):
    if not (base / stage).is_dir():
      raise UserError(f"{base} has no {stage}, which {table.title} starts from")
  for key in keys:
    name, _, _ = key.partition("/")
    folder = table.folders[name]
    (out / name).mkdir(parents=True, exist_ok=True)
    for stage in table.run(key).reads:
      origin = table.origin(name, stage)
      if origin != f"{name}/{stage}":
        link(out / name / stage, Path("..", origin) if "/" in origin else base / origin)
    if table.bundle:
      bundle: dict[str, Any] = dict(table.bundle)
      bundle["components"] = bundle["components"] | folder.components
      bundle["preprocessing"] = bundle["preprocessing"] | folder.preprocessing
      bundle |= {"representation": folder.representation} if folder.representation else {}
      write_json(out / name / "bundle.json", bundle)


def link(path: Path, target: Path) -> None:
  """Makes a symbolic link, also beside others who do."""
  with suppress(FileExistsError):
    path.symlink_to(target)
  if not path.is_symlink() or Path(os.readlink(path)) != target:
    raise UserError(f"{path} is not the link to {target} that the table needs: remove it first")


def claim_out(out: Path, page: str, mini: bool) -> None:
  """A folder belongs to one table.

  Raises:
    UserError: it holds another.
  """
  mine = {"page": Path(page).name, "mini": mini}
  out.mkdir(parents=True, exist_ok=True)
  if (out / ablations.MADE).is_file():
    theirs = json.loads((out / ablations.MADE).read_text())
    if theirs != mine:
      raise UserError(f"{out} holds {theirs}, not {mine}; choose another --out")
  else:
    write_json(out / ablations.MADE, mine)


def check_made(caller: Caller, keys: Sequence[str]) -> None:
  """Raises UserError for a training run that is there and was made with another config."""
  for key in keys:
    run, path = caller.table.run(key), caller.out / key
    if run.module == "tarjax.train" and (path / "config.json").is_file():
      config, _ = parse(caller.command(key)[3:])
      if changed := differences(path, config):
        raise UserError(f"{path} was made with another config: {', '.join(changed)}; remove it")


def show(caller: Caller, keys: Sequence[str]) -> None:
  """What would be run, as it can be called by hand or by a pod's launcher."""
  for key in keys:
    print(f"# {key}: {caller.state(key)}\n{' '.join(['python', *caller.command(key)[1:]])}")


def run(args: argparse.Namespace) -> int:
  page, _, variant = args.page.partition(":")
  if variant not in ("", "mini"):
    raise UserError(f"{args.page}: a table is itself or its :mini, not :{variant}")
  mini = args.mini or variant == "mini"
  table = ablations.load(page, mini)
  names = list(dict.fromkeys(args.only.split(","))) if args.only else list(table.rows)
  keys = table.of_rows(names)
  if args.plan:
    for config, changes in ablations.configs_of(table, keys):
      words = [f"--config={config}", f"--topology={args.plan}", *changes]
      print(f"python -m tarjax.plan {' '.join(words)}")
    return 0
  wants_data = any("{data}" in word for key in keys for word in table.run(key).arguments)
  if wants_data and not Path(args.data or "?").is_dir():
    raise UserError(f"{table.title} needs --data, the folder of the data sets, not {args.data!r}")
  base, out = Path(args.base).absolute(), Path(args.out).absolute()
  caller = Caller(table, out, base, str(Path(args.data).absolute()) if args.data else "")
  if args.dry_run:
    show(caller, keys)
    return 0
  if not base.is_dir():
    raise UserError(f"--base {args.base} is no folder")
  claim_out(out, page, mini)
  lay_out(table, keys, out, base)
  check_made(caller, keys)
  caller.start()
  return caller.work(keys)


def main(argv: list[str]) -> int:
  try:
    return run(arguments(argv))
  except (UserError, OSError) as e:
    print(f"error: {e}", file=sys.stderr)
    return 2


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
