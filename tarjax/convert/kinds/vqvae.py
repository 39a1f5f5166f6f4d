"""VQ-16 of LlamaGen: `vq_ds16_t2i.pt` and `vq_ds16_c2i.pt`, {"model": state dict}.

A file says no sizes; they are read off the shapes, and the rest is as the original has it.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tarjax.convert.kinds import Found, count, tensor
from tarjax.convert.plan import Place, Table
from tarjax.convert.rules import Rule, flatten
from tarjax.convert.tensors import Source
from tarjax.convert.vqvae import USAGE, USAGE_SIZE, vqvae_config, vqvae_rules
from tarjax.models.vqvae import VqVae, VqVaeConfig

TASK, FORMAT, FILE = "vqvae", "torch", "vq_ds16.pt"
PARTS = (
  ("encoder", r"(encoder|quant_conv)/.*"),
  ("codebook", r"codebook"),
  ("decoder", r"(decoder|post_quant_conv)/.*"),
  ("log of used codes", r"usage"),
)
WHAT = "a VQ-16"


def recognise(source: Source, given: Mapping[str, Any]) -> Found | None:
  if not {"quantize.embedding.weight", "post_quant_conv.weight"} & source.tensors.keys():
    return None
  first = tensor(source, "encoder.conv_in.weight", WHAT, 4).shape[0]
  levels = count(source, "encoder.conv_blocks.")
  widths = [
    tensor(source, f"encoder.conv_blocks.{i}.res.0.conv1.weight", WHAT, 4).shape[0]
    for i in range(levels)
  ]
  codes = tensor(source, "quantize.embedding.weight", WHAT, 2).shape
  config = {
    "ch": first,
    "ch_mult": [width // first for width in widths],
    "num_res_blocks": count(source, "encoder.conv_blocks.0.res."),
    "z_channels": tensor(source, "encoder.conv_out.weight", WHAT, 4).shape[0],
    "codebook_size": codes[0],
    "codebook_embed_dim": codes[1],
    "codebook_l2_norm": True,
    "commit_loss_beta": 0.25,
    "entropy_loss_ratio": 0.0,
  }
  run = {"task": TASK, "model": dataclasses.asdict(vqvae_config({**config, **given}))}
  usage = source.tensors.get(USAGE)
  layout = {"usage": list(usage.shape)} if usage else {}
  return Found("vqvae", run, table(run, layout), layout)


def check(source: Source, found: Found) -> None:
  pass


def table(config: Mapping[str, Any], layout: Mapping[str, Any]) -> Table:
  model = VqVaeConfig(**config["model"])
  images = jax.ShapeDtypeStruct((1, model.factor, model.factor, 3), jnp.float32)
  boxed = jax.eval_shape(VqVae(model).init, jax.random.key(0), images)["params"]
  shapes = {name: leaf.shape for name, leaf in flatten(nn.meta.unbox(boxed)).items()}
  shapes["usage"] = tuple(layout.get("usage", (USAGE_SIZE,)))
  rules = [*vqvae_rules(model), Rule(re.escape(USAGE), "usage")]
  places = (Place("(usage)", "unused"),)
  constants = {"usage": np.float32(0)}
  return Table(rules, shapes, places=places, optional=("unused",), constants=constants)


def around(config: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
  return {}
