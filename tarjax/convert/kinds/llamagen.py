"""LlamaGen that draws from a class: `c2i_XL_384.pt` and its like, {"model": state dict} or bare.

Shapes say neither the number of heads, which are 64 wide in all that are published, nor that of a
picture's codes, which the file's name says ("_384" is 24 x 24). --config FILE says both:
{"n_head": 20, "block_size": 576}.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tarjax.convert.ar_dtok import ar_dtok_rules, qkv_cuts
from tarjax.convert.kinds import Found, count, guess_heads, tensor
from tarjax.convert.plan import Table
from tarjax.convert.rules import ConversionError, flatten
from tarjax.convert.tensors import Source
from tarjax.models.ar_dtok import ArDtok, ArDtokConfig

TASK, FORMAT, FILE = "llamagen", "torch", "c2i.pt"
PARTS = (
  ("classes", r"cond/.*"),
  ("table of codes", r"embed/.*"),
  ("blocks", r"blocks/.*"),
  ("last norm and output", r"(norm|head)/.*"),
)
WHAT = "a class-conditional LlamaGen"
CLASSES = "cls_embedding.embedding_table.weight"
PIXELS = 16  # of a code, a side


def recognise(source: Source, given: Mapping[str, Any]) -> Found | None:
  names = source.tensors.keys()
  if not {CLASSES, "layers.0.attention.wqkv.weight"} <= names or "abs_pe" in names:
    return None
  rows, width = tensor(source, CLASSES, WHAT, 2).shape
  dropout = given.get("class_dropout_prob", 0.1)  # with any, the last row is the null class
  heads = given.get("n_head") or guess_heads(width)
  projections = tensor(source, "layers.0.attention.wqkv.weight", WHAT, 2).shape[0]
  model = ArDtokConfig(
    width=width,
    depth=count(source, "layers."),
    heads=heads,
    kv_heads=(projections - width) * heads // (2 * width),
    mlp=tensor(source, "layers.0.feed_forward.w1.weight", WHAT, 2).shape[0],
    vocab=tensor(source, "tok_embeddings.weight", WHAT, 2).shape[0],
    cond="class",
    cond_vocab=rows - (dropout > 0),
    cond_length=1,
    length=given.get("block_size") or length_of(source),
    rotary=True,
    cond_dropout=dropout,
  )
  run = {"task": TASK, "model": dataclasses.asdict(model)}
  return Found("llamagen", run, table(run, {}), {})


def length_of(source: Source) -> int:
  """Codes of a picture, from the name of the file."""
  found = re.search(r"_(256|384|512)\b", Path(source.name).stem)
  if not found:
    raise ConversionError(
      f"{source.path}: neither shapes nor the file's name say how many codes a picture has; "
      '--config FILE does: {"block_size": 576}'
    )
  return (int(found[1]) // PIXELS) ** 2


def check(source: Source, found: Found) -> None:
  pass


def table(config: Mapping[str, Any], layout: Mapping[str, Any]) -> Table:
  model = ArDtokConfig(**config["model"])
  inputs = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1,), (1, model.length)))
  boxed = jax.eval_shape(ArDtok(model).init, jax.random.key(0), *inputs)["params"]
  shapes = {name: leaf.shape for name, leaf in flatten(nn.meta.unbox(boxed)).items()}
  return Table(ar_dtok_rules(model), shapes, qkv_cuts(model))


def around(config: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
  return {}
