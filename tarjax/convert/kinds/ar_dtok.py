"""AR de-tokenizers: `ar_dtok_lp_256px.pth` and its like, {"model": {"name", "args", "sd"}}."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tarjax.convert.ar_dtok import (
  PREFIX,
  ar_dtok_config,
  ar_dtok_rules,
  family_sizes,
  first,
  qkv_cuts,
  torch_args,
)
from tarjax.convert.kinds import Found, count, guess_heads, tensor
from tarjax.convert.plan import Place, Table
from tarjax.convert.rules import ConversionError, Rule, flatten
from tarjax.convert.tensors import Source
from tarjax.models.ar_dtok import FAMILY, ArDtok, ArDtokConfig, sine_table

TASK, FORMAT, FILE = "ar_dtok", "torch", "ar_dtok.pth"
PARTS = (
  ("condition", r"cond/.*"),
  ("table of codes", r"embed/.*"),
  ("positions", r"positions"),
  ("blocks", r"blocks/.*"),
  ("last norm and output", r"(norm|head)/.*"),
)
WHAT = "an AR de-tokenizer"


def recognise(source: Source, given: Mapping[str, Any]) -> Found | None:
  if not {"tok_embeddings.weight", "layers.0.attention.wqkv.weight"} & source.tensors.keys():
    return None
  name, args = source.around.get("name"), source.around.get("args")
  if not isinstance(args, dict):
    raise ConversionError(f"{source.path} looks like {WHAT} but has no args")
  size, guessed = sizes(source, str(name), args, given)
  merged = {**shape_args(source, args), **args, **size}
  model = ar_dtok_config(merged)
  mlp = tensor(source, "layers.0.feed_forward.w1.weight", WHAT, 2).shape[0]
  run = {"task": TASK, "model": dataclasses.asdict(dataclasses.replace(model, mlp=mlp))}
  layout: dict[str, Any] = {"around": source.around}
  if guessed:
    layout["assumed"] = [
      f"{name}, {model.width} wide, has {model.heads} heads; shapes do not say it, --config FILE "
      'does: {"name_means": {"n_layer": ..., "n_head": ..., "dim": ...}}'
    ]
  return Found("ar_dtok", run, table(run, layout), layout)


def sizes(source: Source, name: str, args: Mapping[str, Any], given: Mapping[str, Any]):
  """{"n_layer", "n_head", "dim"}, and whether the heads are a guess.

  They are known by the name, from --config, by args, or, with fewer kv heads, by the shapes.
  """
  if name.removeprefix(PREFIX) in FAMILY:
    return family_sizes(name), False
  if given.get("name_means"):
    return given["name_means"], False
  rows, dim = tensor(source, "layers.0.attention.wqkv.weight", WHAT, 2).shape
  heads, kv_heads = args.get("n_head"), args.get("n_kv_head")
  if not heads and kv_heads and rows > dim != rows // 3:
    heads = dim * 2 * kv_heads // (rows - dim)
  found = {"n_layer": count(source, "layers."), "n_head": heads or guess_heads(dim), "dim": dim}
  return found, not heads


def shape_args(source: Source, args: Mapping[str, Any]) -> dict[str, Any]:
  """Arguments that shapes tell, for files that leave them out."""
  found: dict[str, Any] = {"vocab_size": tensor(source, "tok_embeddings.weight", WHAT, 2).shape[0]}
  null = args.get("class_dropout_prob", 0.1) > 0  # a table then has one row more
  for kind, name, key in (
    ("indice_cond", "clip_proj", "cond_vocab_size"),
    ("class_cond", "cls_embedding", "num_classes"),
  ):
    if (table := f"{name}.embedding_table.weight") in source.tensors:
      found |= {"model_type": kind, key: tensor(source, table, WHAT, 2).shape[0] - null}
  if "clip_proj.weight" in source.tensors:
    found["cond_dim"] = tensor(source, "clip_proj.weight", WHAT, 2).shape[1]
  rows = tensor(source, "abs_pe", WHAT, 3).shape[1]
  if "cls_token_num" in args:
    found["max_seq_len"] = rows + 1 - args["cls_token_num"]
  elif "max_seq_len" in args:
    found["cls_token_num"] = rows + 1 - args["max_seq_len"]
  return found


def check(source: Source, found: Found) -> None:
  """Fixed positions must be the sines that the network computes."""
  model = ArDtokConfig(**found.config["model"])
  if model.fixed_positions:
    have = source.tensors["abs_pe"].read().astype(np.float32)
    tolerance = 1e-5 if source.tensors["abs_pe"].dtype.itemsize >= 4 else 1e-2
    if not np.allclose(have, sine_table(model.rows, model.width), atol=tolerance):
      raise ConversionError(f"{source.path}: abs_pe is not the sine table that its args speak of")


def table(config: Mapping[str, Any], layout: Mapping[str, Any]) -> Table:
  model = ArDtokConfig(**config["model"])
  cond = {"features": (1, 1, model.cond_width), "indices": (1, 1), "class": (1,)}[model.cond]
  dtype = jnp.float32 if model.cond == "features" else jnp.int32
  inputs = jax.ShapeDtypeStruct(cond, dtype), jax.ShapeDtypeStruct((1, model.length), jnp.int32)
  boxed = jax.eval_shape(ArDtok(model).init, jax.random.key(0), *inputs)["params"]
  shapes = {name: leaf.shape for name, leaf in flatten(nn.meta.unbox(boxed)).items()}
  if not model.fixed_positions:
    return Table(ar_dtok_rules(model), shapes, qkv_cuts(model))
  shapes["positions"] = (model.rows, model.width)
  return Table(
    [*ar_dtok_rules(model), Rule("abs_pe", "positions", first)],
    shapes,
    qkv_cuts(model),
    (Place("(positions)", "unused"),),
    optional=("unused",),
    constants={"positions": sine_table(model.rows, model.width)},
  )


def around(config: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
  """The name and the arguments; sizes outside the family are named "custom"."""
  if "around" in layout:
    return layout["around"]
  model = ArDtokConfig(**config["model"])
  size = (model.depth, model.heads, model.width)
  name = PREFIX + next((n for n, s in FAMILY.items() if s == size), "custom")
  return {"name": name, "args": torch_args(model)}
