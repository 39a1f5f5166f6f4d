"""Which tokenizers made the codes that a run learns from, and whether they are the run's own.

Codes mean nothing without the tokenizer that made them, and training on those of another one fails
without a sign. `tarjax.encode` stamps each folder of codes with the hash of its tokenizers'
parameters; a run writes what its data were made by to WORKDIR/tokenizers.json, so that a run that
starts from it can be held to the same.
"""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tarjax import checkpoint
from tarjax.config import UserError, write_json
from tarjax.convert.rules import flatten
from tarjax.data import sources
from tarjax.tasks import ta_tok

FILE = "tokenizers.json"


def tree_hash(tree) -> str:
  """sha256 over names, shapes, dtypes and bytes of a tree of arrays."""
  digest = hashlib.sha256()
  for name, array in sorted(flatten(tree).items()):
    array = np.asarray(array)
    digest.update(f"{name} {array.shape} {array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def load_tokenizer(kind: str, spec: str, workdir: str | Path = ".") -> dict[str, Any]:
  """Parameters of a tokenizer's run, as they are hashed: without a discriminator.

  Args:
    kind: "ta_tok", whose frozen parameters are the teacher's and E; or another.
  """
  params = checkpoint.load(spec, workdir)
  if kind == "ta_tok":
    return ta_tok.merge(params, checkpoint.load(spec, workdir, frozen=True))
  return {name: tree for name, tree in params.items() if name != "discriminator"}


def of_data(config, workdir: Path) -> dict[str, str]:
  """{"ta_tok", "vqvae", ...} -> hash, as the folders of config.data.sources are stamped.

  Raises:
    UserError: two folders that different tokenizers made.
    ValueError: a folder that is not complete.
  """
  found: dict[str, str] = {}
  where: dict[str, str] = {}
  for spec in config.data.get("sources", ()):
    if spec.get("name") != "records" or not isinstance(spec.get("path"), str):
      continue
    folder = sources.resolve(str(workdir), spec["path"].replace("{split}", "train"))
    for kind, digest in sources.read_meta(folder).get("tokenizers", {}).items():
      if found.setdefault(kind, digest) != digest:
        raise UserError(f"{folder} and {where[kind]} were encoded by different {kind} runs")
      where.setdefault(kind, folder)
  return found


def verify(config, workdir: Path) -> None:
  """Compares the data's stamps with the run's past and with the runs that its config names.

  Raises:
    UserError: they differ, with both hashes and where they come from.
    ValueError: a folder of codes that is not complete.
  """
  made = of_data(config, workdir)
  if not made:
    return
  known = workdir / FILE
  if known.is_file():  # of the runs that it started from, nothing needs to be left
    _compare(made, sources.read_json(known), f"those that {workdir} began with")
    return
  for spec in config.init.values():
    other = Path(workdir, checkpoint.parse_spec(spec)[0]).resolve()
    if (other / FILE).is_file():
      _compare(made, sources.read_json(other / FILE), f"those that {other} learnt from")
  for kind in ("ta_tok", "vqvae", "unitok"):
    spec = config.get(f"{kind}_from") or (config.get("widen") or {}).get(kind)
    if spec and kind in made:
      own = tree_hash(load_tokenizer(kind, spec, workdir))
      _compare(made, {kind: own}, f"the weights of {spec}")
  if jax.process_index() == 0:
    write_json(known, made)


def _compare(made: dict[str, str], wanted: dict[str, str], whose: str) -> None:
  for kind in sorted(made.keys() & wanted.keys()):
    if made[kind] != wanted[kind]:
      raise UserError(
        f"config.data was encoded by another {kind} ({made[kind][:12]}) than {whose} "
        f"({wanted[kind][:12]}): encode it again"
      )
