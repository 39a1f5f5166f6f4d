"""TA-Tok: `ta_tok.pth`, {"model": {"name", "args", "sd"}}.

Kept as training keeps it: E in the tree "frozen", and in "unused" what no output reads, such as the
encoder's last block.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tarjax.convert.kinds import Found, count, guess_heads, tensor
from tarjax.convert.kinds.siglip2 import HEADS
from tarjax.convert.plan import Place, Table
from tarjax.convert.rules import ConversionError, flatten
from tarjax.convert.siglip2 import HEAD_CUTS, shapes_of, vision_shapes
from tarjax.convert.ta_tok import image_shape, ta_tok_config, ta_tok_rules
from tarjax.convert.tensors import Source
from tarjax.models.ta_tok import TaTok, TaTokConfig

TASK, FORMAT, FILE = "ta_tok", "torch", "ta_tok.pth"
PARTS = (
  ("encoder without its head", r"encoder/(?!head/).*"),
  ("head of the encoder", r"encoder/head/.*"),
  ("decoder without its head", r"decoder/(?!head/).*"),
  ("head of the decoder", r"decoder/head/.*"),
  ("task layers", r"(encode_task|decode_task1|decode_task2)/.*"),
  ("linear layers around the codes", r"(in|out)_linear/.*"),
  ("W, the projection of the codebook", r"quantizer/proj/.*"),
  ("E, the rows of the language model", r"(quantizer/)?embedding"),
  ("learned temperature", r"quantizer/temperature_inv"),
  ("scaling of pixels", r"scale_layer/.*"),
)
WHAT = "a TA-Tok"


def recognise(source: Source, given: Mapping[str, Any]) -> Found | None:
  if not any(name.startswith("bottleneck.") for name in source.tensors):
    return None
  args = source.around.get("args")
  if not isinstance(args, dict):
    raise ConversionError(f"{source.path} looks like {WHAT} but has no args")
  encoder = given.get("encoder_vision_config") or encoder_of(source, args)
  decoder = given.get("decoder_siglip2_defaults") or decoder_of(source)
  model = ta_tok_config(args, encoder, decoder)
  nested = any(n.startswith("decoder.vision_model.") for n in source.tensors)
  level = "vision_model." if nested else ""
  layout = {"level": level, "around": source.around}
  if "encoder_vision_config" not in given and model.encoder.width not in HEADS:
    layout["assumed"] = [
      f"the encoder, {model.encoder.width} wide, has {model.encoder.heads} heads; shapes do not "
      'say it, --config FILE does: {"encoder_vision_config": {"num_attention_heads": ..., ...}}'
    ]
  run = {"task": TASK, "model": dataclasses.asdict(model)}
  return Found("ta_tok", run, table(run, layout), layout)


def encoder_of(source: Source, args: Mapping[str, Any]) -> dict[str, Any]:
  """transformers' config of the encoder, from its shapes; its heads go by the width."""
  layer = "encoder.encoder.layers.0."
  patch = tensor(source, "encoder.embeddings.patch_embedding.weight", WHAT, 4).shape
  rows = tensor(source, "encoder.embeddings.position_embedding.weight", WHAT, 2).shape[0]
  width, grid = patch[0], math.isqrt(rows)
  published = 384 if (grid, patch[2]) == (27, 14) else grid * patch[2]
  return {
    "hidden_size": width,
    "num_hidden_layers": count(source, "encoder.encoder.layers."),
    "num_attention_heads": HEADS.get(width) or guess_heads(width),
    "intermediate_size": tensor(source, layer + "mlp.fc1.weight", WHAT, 2).shape[0],
    "num_channels": patch[1],
    "patch_size": patch[2],
    "image_size": args.get("input_size") or published,
  }


def decoder_of(source: Source) -> dict[str, Any]:
  """What shapes tell of the decoder; its heads are the default of transformers, 12."""
  names = [n for n in source.tensors if n.startswith("decoder.")]
  found = {}
  for key, end in (
    ("num_patches", "embeddings.position_embedding.weight"),
    ("intermediate_size", "encoder.layers.0.mlp.fc1.weight"),
  ):
    name = next((n for n in names if n.endswith(end)), f"decoder.{end}")
    found[key] = tensor(source, name, WHAT, 2).shape[0]
  return found


def check(source: Source, found: Found) -> None:
  """Pixels must be scaled to [-1, 1], for tarjax does it outside the network."""
  for name in ("scale_layer.shift", "scale_layer.scale"):
    if name in source.tensors and (source.tensors[name].read() != 0.5).any():
      raise ConversionError(f"{source.path}: {name} maps pixels otherwise than to [-1, 1]")


def table(config: Mapping[str, Any], layout: Mapping[str, Any]) -> Table:
  model = TaTokConfig(**config["model"])
  tree = shapes_of(TaTok(model), image_shape(model))
  tree |= {"encoder": vision_shapes(model.encoder), "decoder": vision_shapes(model.decoder)}
  shapes = {name: leaf.shape for name, leaf in flatten(tree).items()}
  shapes |= {f"scale_layer/{name}": (1, 3, 1, 1) for name in ("shift", "scale")}
  places = (
    Place(r"quantizer/(embedding)", "frozen"),
    Place(r"((?:encoder|decoder)/head/.*|encoder/norm/.*|scale_layer/.*)", "unused"),
    Place(r"(encoder/blocks/.*)", "unused", first=model.blocks),
  )
  return Table(
    ta_tok_rules(model, layout.get("level", "vision_model.")),
    shapes,
    HEAD_CUTS,
    places,
    optional=("unused",),
    verbatim=r"teacher.*",
    constants={"scale_layer/shift": 0.5, "scale_layer/scale": 0.5},
  )


def around(config: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
  """The name and the constructor's arguments."""
  if "around" in layout:
    return layout["around"]
  model = TaTokConfig(**config["model"])
  options = {
    "codebook_size": model.codes,
    "l2_normalized": model.l2_normalized,
    "stochastic": model.stochastic,
    "stochastic_temperature": model.temperature,
  }
  quantiser = {"name": "simvq", "args": options}
  inner = {"bottleneck_dim": model.width, "regularizer": quantiser}
  args = {
    "bottleneck": {"name": "bottleneck", "args": inner},
    "bottleneck_token_num": model.encoder.grid**2,
    "input_size": model.encoder.image,
    "decoder_depth": model.decoder.depth,
    "select_layer_id": model.select_layer,
  }
  return {"name": "ta_tok", "args": args}
