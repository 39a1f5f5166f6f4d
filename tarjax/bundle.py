"""Bundles: the component runs behind a `TarPipeline`, their networks, and whether they fit.

A bundle is a folder with bundle.json, which names the component runs and the tokenizer (relative
to the folder), the sides in pixels that AR-DTok draws at and that pictures are resized to, and the
default sampling:

  {"components": {"tokenizer": "tokenizer_tar", "mllm": "sft", "ta_tok": "ta_tok",
                  "ar_dtok": "ar_dtok", "vqvae": "vqvae", "dif_dtok": "dif_dtok", "dc_ae": "dc_ae"},
   "preprocessing": {"resize": "squash", "drawn": 24, "canvas": 48},
   "sampling": {"scale": 1, "text": {...}, "image": {...}, "pixels": {...}, "dif": {...}}}

The last two components are optional: a bundle whose folders of these are absent draws by AR-DTok
only. With another "representation" than "ta_tok" (`tarjax.representations`) the components are
those of `PARTS`, "drawn" is the side that their codes have, and "sampling" has no scale and no
pixels; Janus's SigLIP2 lies in the MLLM's run. A run in training may take the place of a component,
whose own folder is then not looked at.
"""

import contextlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import FlaxError

from tarjax import checkpoint
from tarjax.config import UserError
from tarjax.convert.rules import flatten
from tarjax.models import tar
from tarjax.models.ar_dtok import ArDtok, ArDtokConfig
from tarjax.models.qwen2 import Qwen2, Qwen2Config
from tarjax.models.ta_tok import TaTok, TaTokConfig
from tarjax.models.unitok import UniTok, UniTokConfig
from tarjax.models.vqvae import VqVae, VqVaeConfig
from tarjax.representations import drawn_side
from tarjax.tasks import ta_tok
from tarjax.tasks.inputs import SCALES

PARTS = {  # what a representation needs beside the tokenizer and the MLLM
  "ta_tok": ("ta_tok", "ar_dtok", "vqvae"),
  "vqvae": ("vqvae",),
  "janus": ("vqvae",),
  "hybrid": ("unitok",),
}
COMPONENTS = ("tokenizer", "mllm", *PARTS["ta_tok"])
OPTIONAL = ("dif_dtok", "dc_ae")


class Network(NamedTuple):
  tasks: tuple[str, ...]  # of its runs
  make: Callable[[Any], Any]  # config.model -> module
  inputs: Callable[[Any], tuple]  # module -> what its init takes


def _pixels(side: int) -> jax.Array:
  return jnp.zeros((1, side, side, 3))


def _ids(length: int) -> jax.Array:
  return jnp.zeros((1, length), jnp.int32)


NETWORKS = {
  "mllm": Network(("mllm",), lambda c: Qwen2(Qwen2Config(**c)), lambda net: (_ids(8),)),
  "ta_tok": Network(
    ("ta_tok",), lambda c: TaTok(TaTokConfig(**c)), lambda net: (_pixels(net.cfg.encoder.image),)
  ),
  "ar_dtok": Network(
    ("ar_dtok", "llamagen"),
    lambda c: ArDtok(ArDtokConfig(**c)),
    lambda net: (
      jnp.zeros((1, net.config.cond_length, net.config.cond_width)),
      _ids(net.config.length),
    ),
  ),
  "vqvae": Network(
    ("vqvae",), lambda c: VqVae(VqVaeConfig(**c)), lambda net: (_pixels(2 * net.config.factor),)
  ),
  "unitok": Network(
    ("hybrid",),
    lambda c: UniTok(UniTokConfig(**c)),
    lambda net: (_pixels(net.config.encoder.image), _ids(net.config.text.length)),
  ),
}


def representation_of(bundle: Mapping[str, Any]) -> str:
  """The name; a UserError unless there is such a representation."""
  name = bundle.get("representation", "ta_tok")
  if name not in PARTS:
    raise UserError(f"bundle.json: representation {name!r} is none of {', '.join(PARTS)}")
  return name


def pool_scale(bundle: Mapping[str, Any], asked: int | None, default: int | None = None):
  """The pool scale to read and draw at, None where the representation has no scales.

  Args:
    default: when none is asked for; None is the bundle's own.

  Raises:
    UserError: a scale that is not 1, 2 or 3, or one where there are none.
  """
  name = representation_of(bundle)
  if name != "ta_tok":
    if asked is not None:
      raise UserError(f"pictures of {name} have no scales: leave out scale={asked}")
    return None
  scale = default if asked is None else asked
  scale = int(bundle["sampling"]["scale"]) if scale is None else scale
  if scale not in SCALES:
    raise UserError(f"scale must be 1, 2 or 3, not {scale}")
  return scale


def read(
  folder: Path, needed: Collection[str] | None = None, training: Collection[str] = ()
) -> dict[str, Any]:
  """What bundle.json says.

  Args:
    needed: components that must be there, by default all that the representation needs,
    training: but for these.

  Raises:
    UserError: no bundle, a damaged one, or a missing component.
  """
  path = folder / "bundle.json"
  if not path.is_file():
    raise UserError(f"{folder} is not a model: it has no bundle.json")
  try:
    bundle = json.loads(path.read_text())
    parts = bundle["components"]
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(f"{path} is damaged: {e}") from e
  if needed is None:
    needed = ("tokenizer", "mllm", *PARTS[representation_of(bundle)])
  for name in needed:
    if name in training:
      continue
    if name not in parts:
      raise UserError(f"{path} names no component {name!r}")
    if not (folder / parts[name]).is_dir():
      raise UserError(f"component {name!r} of {path} is missing: no folder {parts[name]!r}")
  return bundle


def of_run(config) -> dict[str, Any]:
  """A bundle of nothing but a run in training, which takes pictures of its data's size."""
  side = config.data.get("size", 0)
  return {
    "components": {},
    "preprocessing": {"resize": "squash", "drawn": side, "canvas": side},
    "sampling": {"scale": 1},
  }


def configs(folder: Path, bundle: dict, training: Mapping[str, Any]) -> dict[str, Any]:
  """{component: config of its run} of the representation's networks that are there."""
  parts, found = bundle["components"], {}
  for name in ("mllm", *PARTS[representation_of(bundle)]):
    if name in training:
      found[name] = training[name]
    elif name in parts and (folder / parts[name]).is_dir():
      found[name] = checkpoint.read_config(folder / parts[name])
  return found


def networks(configs: Mapping[str, Any]) -> dict[str, Any]:
  """{component: module} of `configs`.

  Raises:
    UserError: a run of another kind, or one whose config.model no such network has.
  """
  made = {}
  for name, config in configs.items():
    network = NETWORKS[name]
    if config.task not in network.tasks:
      raise UserError(
        f"component {name!r} is a run of {config.task!r}, not of {network.tasks[0]!r}"
      )
    try:
      made[name] = network.make(config.model)
    except TypeError as e:
      raise UserError(f"component {name!r}: its config.model does not make one: {e}") from e
  return made


@contextlib.contextmanager
def check_weights(modules: Mapping[str, Any], trees: Mapping[str, Any]):
  """Where a network does not run with its parameters, says which do not fit its config.

  To trace an init for their shapes takes seconds, so nothing is traced before.

  Raises:
    UserError: one that is missing, or of another shape, with both shapes.
  """
  try:
    yield
  except (FlaxError, ValueError) as e:  # the latter from a scan of another depth
    for name in modules.keys() & trees.keys():
      module, have = modules[name], flatten(trees[name])
      boxed = jax.eval_shape(module.init, jax.random.key(0), *NETWORKS[name].inputs(module))
      for parameter, want in flatten(nn.meta.unbox(boxed["params"])).items():
        if parameter not in have:
          raise UserError(f"the checkpoint of component {name!r} has no {parameter}") from e
        if have[parameter].shape != want.shape:
          raise UserError(
            f"component {name!r} does not fit its config.json: {parameter} is "
            f"{have[parameter].shape} in the checkpoint, {want.shape} by the config"
          ) from e
    raise


def load(folder: Path, bundle: dict, names: Collection[str]) -> tuple[dict, dict]:
  """Weights of components, and what stays frozen beside TA-Tok: trees of numpy arrays.

  What stays frozen beside the MLLM is among the components.
  """
  parts = bundle["components"]
  trees: dict[str, Any] = {name: checkpoint.load(str(folder / parts[name])) for name in names}
  frozen = {}
  if "ta_tok" in trees:
    frozen = checkpoint.load(str(folder / parts["ta_tok"]), frozen=True)
    trees["ta_tok"] = ta_tok.merge(trees["ta_tok"], frozen)
  if "mllm" in trees and representation_of(bundle) == "janus":
    trees |= checkpoint.load(str(folder / parts["mllm"]), frozen=True)
  return trees, frozen


def check(bundle: dict, modules: Mapping[str, Any], mllm: Any, vocab: Any) -> None:
  """Sizes of the components that are there against each other.

  Args:
    modules: by component.
    mllm: the MLLM's config, or None.
    vocab: of the tokenizer, or None.

  Raises:
    UserError: two that do not fit, with both sizes.
  """
  name = representation_of(bundle)
  sizes: dict[str, int] = {}
  if vocab is not None:
    sizes["the tokenizer's visual words"] = vocab.codes
    sizes["the tokenizer's length"] = vocab.image0 + vocab.codes
  if mllm is not None:
    sizes["the MLLM's words"] = mllm.words.text_rows + tar.MARKS + mllm.words.codes
    if (theirs := mllm.get("representation", "ta_tok")) != name:
      raise UserError(f"components do not fit: the bundle is of {name}, its MLLM of {theirs}")
  if "ta_tok" in modules:
    sizes["TA-Tok's codes"] = modules["ta_tok"].cfg.codes
    sizes["TA-Tok's features"] = modules["ta_tok"].cfg.encoder.width
  if "ar_dtok" in modules:
    sizes["AR-DTok's cond_width"] = modules["ar_dtok"].config.cond_width
    sizes["AR-DTok's vocabulary"] = modules["ar_dtok"].config.vocab
  if "vqvae" in modules:
    sizes["the VQVAE's codes"] = modules["vqvae"].config.codes
    if mllm is not None and name != "ta_tok":
      sizes["the side that is drawn"] = bundle["preprocessing"]["drawn"]
      sizes["the side of its codes"] = drawn_side(mllm.words.tokens, modules["vqvae"])
  if "unitok" in modules:
    net = modules["unitok"].config
    sizes |= {"UniTok's places": net.tokens, "UniTok's sub-codebooks": net.codebooks}
    sizes["UniTok's codes"] = net.codes
  if mllm is not None and name == "hybrid":
    sizes["the MLLM's visual words"] = mllm.words.codes
    sizes["the MLLM's places"] = mllm.words.tokens
    sizes["the depth head's sub-codebooks"] = mllm.depth_head.codebooks
    sizes["the depth head's codes"] = mllm.depth_head.codes
  for one, other in (("the tokenizer's visual words", WORDS[name]), *PAIRS):
    a, b = sizes.get(one), sizes.get(other)
    if None not in (a, b) and a != b:
      raise UserError(f"components do not fit: {one} are {a}, {other} {b}")


WORDS = {"ta_tok": "TA-Tok's codes", "vqvae": "the VQVAE's codes", "janus": "the VQVAE's codes"}
WORDS["hybrid"] = "the MLLM's visual words"
PAIRS = (
  ("AR-DTok's cond_width", "TA-Tok's features"),
  ("AR-DTok's vocabulary", "the VQVAE's codes"),
  ("the tokenizer's length", "the MLLM's words"),
  ("the side that is drawn", "the side of its codes"),
  ("the MLLM's places", "UniTok's places"),
  ("the depth head's sub-codebooks", "UniTok's sub-codebooks"),
  ("the depth head's codes", "UniTok's codes"),
)
