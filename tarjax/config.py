"""The command line and the config of a run, checked before anything heavy is imported.

A config is one `ml_collections.ConfigDict`. Every key must be known to someone: the loop, the
optimizer or the task; keys of `model` are checked by the network's dataclass, keys of `data` by
the pipeline. What a run was made of stands in WORKDIR/config.json.
"""

import contextlib
import difflib
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from tarjax.chips import CHIPS
from tarjax.tasks import TASK_KEYS

# fmt: off
REQUIRED = {
    "task", "seed", "steps", "batch", "model", "init", "frozen", "dont_load", "optim", "data",
    "mesh", "log_every", "save_every", "eval_every", "keep",
}
OPTIONAL = {
    "eval_batches": 4,
    "evals": {},  # evaluators by name with their arguments, see tarjax/evals/inside.py
    "chips": {},  # by kind of chip, the values that FREE keys have on it, see configs/base.py
    "compiler": {},  # XLA's options
    "accumulate": 1,  # parts that a batch is taken in
    "keep_every": 0,  # also keep each save whose step is a multiple of this
    "nonfinite_limit": 10,  # skipped steps in a row that are too many,
    "nonfinite_then": "stop",  # or "rewind" to the last save and pass over their data
    "min_usage": 0.0,  # share of codes in use below which a run stops; 0: never
    "min_usage_after": 0,  # steps
    "hang_seconds": 1800.0,  # without a step, after which a process ends; 0: never
    "profile_steps": "",  # "a:b": a trace of steps a+1 to b for xprof
    "wandb": "",  # project
}
OPTIONAL_DATA = {  # of config.data; no weight depends on them
    "max_damaged": 0.01,  # share of damaged records above which a run stops
    "workers": 0,  # processes that make batches, for images to be decoded on many cores
    "threads": 2,  # 0 makes batches in the calling thread
    "prefetch": 8,  # batches
}
OPTIM = {
    "name", "lr", "b1", "b2", "eps", "weight_decay", "warmup", "schedule", "final", "clip",
}
MORE_OPTIM = {"came": {"b3"}}  # keys of one optimizer
OPTIONAL_OPTIM = {"restart_codes", "ema", "discriminator"}
# Keys that may change between two starts of one run, because no weight depends on them.
FREE = {
    "mesh", "chips", "compiler", "accumulate", "model/remat", "loss_chunk", "log_every",
    "save_every", "eval_every", "eval_batches", "evals", "keep", "keep_every", "min_usage",
    "min_usage_after", "nonfinite_limit", "nonfinite_then", "hang_seconds", "profile_steps",
    "wandb",
    *(f"data/{key}" for key in OPTIONAL_DATA),
}
# fmt: on
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class UserError(Exception):
  """A mistake of the person at the keyboard: told in one sentence, exit code 2."""


def exit_code(run: Callable[[], object]) -> int:
  """Runs a verb -> 0, or 2 after one sentence on stderr about what cannot be done."""
  try:
    run()
  except OSError as e:
    print(f"error: {f'{e.filename}: {e.strerror}' if e.filename else e}", file=sys.stderr)
    return 2
  except (UserError, ValueError) as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  return 0


@contextlib.contextmanager
def told(*more: type[Exception]):
  """Turns what the rooms say about a config or a mesh (ValueError, OSError) into a UserError."""
  try:
    yield
  except (ValueError, OSError, *more) as e:
    raise UserError(str(e)) from e


def parse(
  argv: list[str], keys: set[str] | None = None, optional: dict[str, Any] = OPTIONAL
) -> tuple[Any, Path]:
  """["--config=FILE[:variant]", "--workdir=DIR", "--config.key=value", ...] -> config, workdir.

  Without `keys` it is a training run's config; with them, one of exactly these top-level keys.
  `optional` ones have the given values where they are missing. What is set here, `config.chips`
  leaves alone.

  Raises:
    UserError: a missing or broken file, an unknown key (with the nearest real one), a bad value.
  """
  changes = [a for a in argv if re.match(r"--?(no)?config\.", a)]
  config, workdir = _parse([a for a in argv if a not in changes])
  if keys is None:
    check(config)
  else:
    check_keys("", config, keys, keys | optional.keys())
  with config.unlocked():
    config.update({k: v for k, v in optional.items() if k not in config})
    if keys is None:
      data: Any = config.data
      data.update({k: v for k, v in OPTIONAL_DATA.items() if k not in data})
  names = ConfigDict(flatten(config.to_dict(), inner=True), allow_dotted_keys=True)
  set_here = [re.split(r"config\.|=|\[", arg)[1] for arg in changes]
  for name in set_here:
    if name.replace(".", "/") not in names:
      key = nearest(name, [n.replace("/", ".") for n in names])
      raise UserError(f"config has no key {name!r}; the nearest one is {key!r}")
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["", *changes])
  _read_flags(values, changes)
  if keys is None:
    by_chip: Any = config.chips
    for settings, name in itertools.product(by_chip.values(), set_here):
      _forget(settings, name)
    check(config)
  return config, workdir


def _forget(settings: Any, name: str) -> None:
  """Removes a dotted key, if it is there, and what that leaves empty."""
  head, _, rest = name.partition(".")
  if head in settings:
    if rest:
      _forget(settings[head], rest)
    if not rest or not settings[head]:
      with settings.unlocked():
        del settings[head]


def _parse(argv: list[str]) -> tuple[ConfigDict, Path]:
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    "config", None, "FILE[:variant]", flag_values=values, sys_argv=["", *argv]
  )
  flags.DEFINE_string("workdir", None, "where the run lives", flag_values=values)
  for i, arg in enumerate(argv):
    if found := re.match(r"--?config(?:=(.*))?$", arg):
      file = (found[1] or "".join(argv[i + 1 : i + 2])).split(":")[0]
      if not Path(file).is_file():
        raise UserError(f"config file {file!r} does not exist")
  _read_flags(values, argv)
  if values["config"].value is None or not values["workdir"].value:
    raise UserError("give --config=FILE[:variant] and --workdir=DIR")
  return values["config"].value, Path(values["workdir"].value).absolute()


def _read_flags(values: flags.FlagValues, argv: list[str]) -> None:
  try:
    rest = values(["", *argv])[1:]
  except flags.Error as e:
    raise UserError(str(e).strip().splitlines()[-1]) from e
  except Exception as e:  # whatever a config file may raise
    raise UserError(f"the config file fails: {type(e).__name__}: {e}") from e
  if rest:
    raise UserError(f"unexpected argument {rest[0]!r}; options look like --config.key=value")


def nearest(name: str, names) -> str:
  """The most similar of `names`; the last part of a dotted name counts like the whole."""
  last = name.rsplit(".", 1)[-1]

  def score(other):
    ratio = difflib.SequenceMatcher(None, name, other).ratio()
    tail = difflib.SequenceMatcher(None, last, other.rsplit(".", 1)[-1]).ratio()
    return max(ratio, 0.9 * tail)

  return max(sorted(names), key=score)


def check(config: ConfigDict) -> None:
  """Looks at all keys and at the values that every run has.

  Raises:
    UserError: an unknown task, a missing key, a key that nothing reads, or a bad value.
  """
  tree: dict[str, Any] = config.to_dict()
  task = tree.get("task")
  if task not in TASK_KEYS:
    raise UserError(f"config.task={task!r} is none of {sorted(TASK_KEYS)}")
  optim = OPTIM | MORE_OPTIM.get(tree.get("optim", {}).get("name"), set())
  groups = (
    ("", tree, REQUIRED, REQUIRED | set(OPTIONAL) | TASK_KEYS[task]),
    ("optim.", tree.get("optim", {}), optim, optim | OPTIONAL_OPTIM),
    ("optim.discriminator.", tree.get("optim", {}).get("discriminator", {}), set(), optim),
  )
  for group in groups:
    check_keys(*group)
  check_chips(tree)
  for key in ("steps", "batch", "accumulate", "log_every", "save_every", "keep", "nonfinite_limit"):
    if tree.get(key, 1) < 1:
      raise UserError(f"config.{key}={tree[key]} must be at least 1")
  if not 0 <= tree["seed"] < 2**32:
    raise UserError(f"config.seed={tree['seed']} must be between 0 and 2**32 - 1")
  then = tree.get("nonfinite_then", "stop")
  if then not in ("stop", "rewind"):
    raise UserError(f"config.nonfinite_then={then!r} is neither 'stop' nor 'rewind'")
  steps_of(tree.get("profile_steps", ""))


def check_chips(tree: dict[str, Any]) -> None:
  """Raises UserError for an unknown chip in `config.chips`, or a key that it may not set."""
  known = flatten(tree, inner=True) | OPTIONAL
  for chip, settings in tree.get("chips", {}).items():
    if chip not in CHIPS:
      raise UserError(f"config.chips.{chip}: the chips are {', '.join(CHIPS)}")
    if not isinstance(settings, dict):
      raise UserError(f"config.chips.{chip}={settings!r} is not a group of keys")
    for name, value in settings.items():
      if isinstance(tree.get(name), dict) and not isinstance(value, dict):
        raise UserError(f"config.chips.{chip}.{name}={value!r} is not a group of keys")
    for key in flatten(settings):
      name = key.replace("/", ".")
      if not free(key):
        raise UserError(f"config.chips.{chip} sets {name}, on which weights depend")
      if key not in known and not key.startswith("compiler/"):
        raise UserError(f"config.chips.{chip} sets {name}, which the config does not have")
    try:
      ConfigDict(OPTIONAL | tree).update(settings)
    except (TypeError, ValueError) as e:
      raise UserError(f"config.chips.{chip}: {e}") from e


def steps_of(text: str) -> tuple[int, int] | None:
  """config.profile_steps, "a:b" -> (a, b); "" -> None.

  Raises:
    UserError: anything else.
  """
  found = re.fullmatch(r"(\d+):(\d+)", text)
  if text and not (found and int(found[1]) < int(found[2])):
    raise UserError(f"config.profile_steps={text!r} is not of the form a:b with a < b")
  return (int(found[1]), int(found[2])) if found else None


def check_keys(prefix: str, group, required: set[str], known: set[str]) -> None:
  """Raises UserError for a key of `group` that is not known, or a required one that is missing."""
  for key in sorted(set(group) - known):
    near = nearest(key, known)
    raise UserError(f"nothing reads config.{prefix}{key}; the nearest key is {prefix}{near}")
  for key in sorted(required - set(group)):
    raise UserError(f"config.{prefix}{key} is missing")


def flatten(tree: dict, prefix: str = "", inner: bool = False) -> dict[str, Any]:
  """{"a": {"b": x}} -> {"a/b": x}; with `inner` also "a"; empty dicts are values."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      flat |= {prefix + str(key): None} if inner else {}
      flat |= flatten(value, f"{prefix}{key}/", inner)
    else:
      flat[prefix + str(key)] = value
  return flat


def plain(config: ConfigDict) -> dict:
  """Config -> what json gives back of it: string keys, lists."""
  return json.loads(json.dumps(config.to_dict(), default=str))


def write_json(path: Path, value: Any) -> None:
  """Atomic, also among several writers: a reader sees the old file or a new one."""
  new = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.new")
  try:
    with open(new, "w") as f:
      f.write(json.dumps(value, indent=2) + "\n")
      f.flush()
      os.fsync(f.fileno())
    new.replace(path)
  finally:
    new.unlink(missing_ok=True)


def claim(workdir: Path, config: ConfigDict) -> None:
  """Makes the workdir and writes config.json: the config, versions, git revision.

  Raises:
    UserError: the directory cannot be made, or holds weights made with another config.
  """
  path = workdir / "config.json"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if path.is_file() and any((workdir / "checkpoints").glob("[0-9]*")):
      if differ := differences(workdir, config):
        raise UserError(f"{workdir} holds a run with another config: {', '.join(differ)}")
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    record = {"config": plain(config), "versions": versions, "revision": revision()}
    write_json(path, record)
  except OSError as e:
    raise UserError(f"cannot write to workdir {workdir}: {e.strerror}") from e


def differences(workdir: Path, config: ConfigDict) -> list[str]:
  """What the weights of a run depend on and its config.json has otherwise, in words."""
  mine = flatten(plain(config))
  theirs = flatten(json.loads((workdir / "config.json").read_text())["config"])
  differ = []
  for key in sorted(mine.keys() | theirs.keys()):
    old, new = theirs.get(key), mine.get(key)
    if old != new and not free(key):
      differ.append(f"{key.replace('/', '.')} ({old} there, {new} here)")
  return differ


def free(key: str) -> bool:
  """Whether this key, or the group it is in, is one of FREE."""
  return bool({key, key.split("/")[0]} & FREE)


def revision() -> str | None:
  """Git revision of the code, "+" if files differ from it; None outside a checkout."""
  here = Path(__file__).parent

  def git(*args):
    return subprocess.run(["git", "-C", here, *args], capture_output=True, text=True)

  try:
    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", ".")
  except OSError:
    return None
  return head.stdout.strip() + "+" * bool(changed.stdout) if head.returncode == 0 else None


def finished(workdir: Path) -> dict | None:
  """The record of a finished run ({"steps", "seconds", "peak_gb"}), or None."""
  path = workdir / "done.json"
  return json.loads(path.read_text()) if path.is_file() else None
