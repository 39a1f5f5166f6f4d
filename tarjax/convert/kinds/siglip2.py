"""SigLIP and SigLIP2: a Hugging Face folder, or a big_vision archive.

A run keeps the image tower under "vision", whether or not a text tower stands beside it, so that
TA-Tok starts from either with the same config.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tarjax.convert.kinds import Found, tensor
from tarjax.convert.plan import Table
from tarjax.convert.rules import Fn, Rule, flatten
from tarjax.convert.siglip2 import (
  HEAD_CUTS,
  model_config,
  scalar,
  text_rules,
  text_shapes,
  vision_rules,
  vision_shapes,
)
from tarjax.convert.tensors import Source
from tarjax.models.siglip2 import NaFlexConfig, TextConfig, VisionConfig

TASK, FORMAT, FILE = "siglip2", "hf", "model.safetensors"
PARTS = (
  ("image tower without its head", r"vision/(?!head/).*"),
  ("head of the image tower", r"vision/head/.*"),
  ("text tower", r"text/.*"),
  ("logit scale and bias", r"logit_.*"),
)
TYPES = {"vision": "vision_model.", "text": "text_model."}
HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}  # of the published widths
KEPT = r".*embeddings\.position_ids"
positions = Fn(lambda w: w.reshape(-1, w.shape[-1]), lambda w: w[None])  # [1 l d] <-> [l d]


def recognise(source: Source, given: Mapping[str, Any]) -> Found | None:
  names = source.tensors
  if any(n.removeprefix("params/").startswith("img/embedding/") for n in names):
    return from_big_vision(source, given)
  hf = {**source.config, **given}
  if not str(hf.get("model_type", "")).startswith("siglip"):
    return None
  configs = model_config(hf)
  level = "vision_model." if any(n.startswith("vision_model.") for n in names) else ""
  vision = hf.get("vision_config") or hf
  layout = {"level": level, "head": bool(vision.get("vision_use_head", True))}
  run = run_config(configs)
  return Found("siglip2", run, table(run, layout), layout)


def run_config(configs: Mapping[str, Any]) -> dict[str, Any]:
  return {"task": TASK, "model": {k: dataclasses.asdict(c) for k, c in configs.items()}}


def check(source: Source, found: Found) -> None:
  pass


def towers(config: Mapping[str, Any]) -> tuple[VisionConfig | NaFlexConfig, TextConfig | None]:
  """A run's config -> the towers it describes."""
  vision, text = config["model"]["vision"], config["model"].get("text")
  image = NaFlexConfig(**vision) if "positions" in vision else VisionConfig(**vision)
  return image, TextConfig(**text) if text else None


def shapes(config: Mapping[str, Any], head: bool = True) -> dict[str, tuple[int, ...]]:
  vision, text = towers(config)
  tree: dict[str, Any] = {"vision": vision_shapes(vision)}
  if text:
    tree["text"] = text_shapes(text)
  found = {name: leaf.shape for name, leaf in flatten(tree).items()}
  if not head:
    found = {name: shape for name, shape in found.items() if not name.startswith("vision/head/")}
  return found | ({"logit_scale": (), "logit_bias": ()} if text else {})


def table(config: Mapping[str, Any], layout: Mapping[str, Any]) -> Table:
  vision, text = towers(config)
  level = layout.get("level", "vision_model.").replace(".", r"\.")
  rules = vision_rules(level, "vision/", vision)
  if text:
    rules += text_rules(r"text_model\.", "text/", text)
    rules += [Rule(f"logit_{part}", f"logit_{part}", scalar) for part in ("scale", "bias")]
  return Table(rules, shapes(config, layout.get("head", True)), HEAD_CUTS, verbatim=KEPT)


def around(config: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
  """A config.json of transformers."""
  vision, text = towers(config)
  made = common(vision)
  if isinstance(vision, NaFlexConfig):
    patch = math.isqrt(vision.channels // 3)
    made |= {"model_type": "siglip2_vision_model", "num_patches": vision.positions}
    made |= {"num_channels": vision.channels // patch**2, "patch_size": patch}
    return made | {"architectures": ["Siglip2VisionModel"]}
  made |= {"model_type": "siglip_vision_model", "image_size": vision.image}
  made |= {"patch_size": vision.patch, "num_channels": vision.channels}
  if not text:
    return made | {"architectures": ["SiglipVisionModel"]}
  words = common(text) | {
    "model_type": "siglip_text_model",
    "vocab_size": text.vocab,
    "max_position_embeddings": text.length,
    "projection_size": text.out or text.width,
  }
  return {
    "architectures": ["SiglipModel"],
    "model_type": "siglip",
    "vision_config": made,
    "text_config": words,
  }


def common(tower: VisionConfig | NaFlexConfig | TextConfig) -> dict[str, Any]:
  return {
    "hidden_size": tower.width,
    "num_hidden_layers": tower.depth,
    "num_attention_heads": tower.heads,
    "intermediate_size": tower.mlp,
    "layer_norm_eps": tower.eps,
    "hidden_act": "gelu_pytorch_tanh",
  }


# --- big_vision -----------------------------------------------------------------------------------


def from_big_vision(source: Source, given: Mapping[str, Any]) -> Found:
  """An archive of the authors: names of Flax, layers stacked or each with its number.

  Raises:
    ConversionError: sizes that cannot be read off the shapes.
  """
  prefix = "params/" if any(n.startswith("params/") for n in source.tensors) else ""
  patch = tensor(source, prefix + "img/embedding/kernel", "a SigLIP of big_vision", 4)
  side, _, channels, _ = patch.shape
  rows = tensor(source, prefix + "img/pos_embedding", "a SigLIP of big_vision", 3).shape[1]
  grid = math.isqrt(rows)
  image = given.get("image_size") or (384 if (grid, side) == (27, 14) else grid * side)
  vision = tower(source, prefix + "img/", "Transformer/")
  configs: dict[str, Any] = {
    "vision": VisionConfig(image=image, patch=side, channels=channels, **vision)
  }
  if prefix + "txt/Embed_0/embedding" in source.tensors:
    words = tensor(source, prefix + "txt/Embed_0/embedding", "a SigLIP of big_vision", 2)
    length = tensor(source, prefix + "txt/pos_embedding", "a SigLIP of big_vision", 3).shape[1]
    out = tensor(source, prefix + "txt/head/kernel", "a SigLIP of big_vision", 2).shape[1]
    text = tower(source, prefix + "txt/", "Encoder_0/")
    configs["text"] = TextConfig(vocab=words.shape[0], length=length, out=out, **text)
  run = run_config(configs)
  stacked = any("/encoderblock/" in name for name in source.tensors)
  rules = big_vision_rules(prefix, stacked, "text" in configs)
  return Found("siglip2", run, Table(rules, shapes(run)), {"level": "vision_model."})


def tower(source: Source, prefix: str, blocks: str) -> dict[str, Any]:
  """Sizes of one tower's blocks."""
  what, base = "a SigLIP of big_vision", f"{prefix}{blocks}encoderblock"
  stacked = any(n.startswith(base + "/") for n in source.tensors)
  block = base + ("/" if stacked else "_0/")
  query = block + "MultiHeadDotProductAttention_0/query/kernel"
  width, heads, _ = tensor(source, query, what, 3 + stacked).shape[-3:]
  fc1 = tensor(source, block + "MlpBlock_0/Dense_0/kernel", what, 2 + stacked).shape
  numbers = {n[len(base) + 1 :].split("/")[0] for n in source.tensors if n.startswith(base + "_")}
  return {
    "width": width,
    "depth": fc1[0] if stacked else len(numbers),
    "heads": heads,
    "mlp": fc1[-1],
  }


def big_vision_rules(prefix: str, stacked: bool, text: bool) -> list[Rule]:
  """The table; the kernels already have our axes."""
  i, t = prefix + "img/", prefix + "txt/"
  head = i + "MAPHead_0/"
  # fmt: off
  rules = [
      Rule(i + r"embedding/(kernel|bias)",                "vision/patch/{1}"),
      Rule(i + r"pos_embedding",                          "vision/position", positions),
      Rule(i + r"Transformer/encoder_norm/(scale|bias)",  "vision/norm/{1}"),
      *block_rules(i + "Transformer/", "vision/blocks/", stacked),
      Rule(head + r"probe",                               "vision/head/probe"),
      *attention_rules(head, "vision/head/attn/"),
      Rule(head + r"LayerNorm_0/(scale|bias)",            "vision/head/norm/{1}"),
      Rule(head + r"MlpBlock_0/Dense_0/(kernel|bias)",    "vision/head/mlp/fc1/{1}"),
      Rule(head + r"MlpBlock_0/Dense_1/(kernel|bias)",    "vision/head/mlp/fc2/{1}"),
  ]
  if text:
    rules += [
      Rule(t + r"Embed_0/embedding",                      "text/embed/embedding"),
      Rule(t + r"pos_embedding",                          "text/position", positions),
      Rule(t + r"Encoder_0/encoder_norm/(scale|bias)",    "text/norm/{1}"),
      *block_rules(t + "Encoder_0/", "text/blocks/", stacked),
      Rule(t + r"head/(kernel|bias)",                     "text/head/{1}"),
      Rule(prefix + r"t",                                 "logit_scale", scalar),
      Rule(prefix + r"b",                                 "logit_bias", scalar),
    ]
  # fmt: on
  return rules


def block_rules(source: str, target: str, stacked: bool) -> list[Rule]:
  s = source + ("encoderblock/" if stacked else r"encoderblock_(\d+)/")
  return [
    Rule(s + r"LayerNorm_0/(scale|bias)", target + "norm1/{1}"),
    Rule(s + r"LayerNorm_1/(scale|bias)", target + "norm2/{1}"),
    *attention_rules(s, target + "attn/"),
    Rule(s + r"MlpBlock_0/Dense_0/(kernel|bias)", target + "mlp/fc1/{1}"),
    Rule(s + r"MlpBlock_0/Dense_1/(kernel|bias)", target + "mlp/fc2/{1}"),
  ]


def attention_rules(source: str, target: str) -> list[Rule]:
  s, names = source + "MultiHeadDotProductAttention_0/", {"query": "q", "key": "k", "value": "v"}
  names |= {"out": "out"}
  return [
    Rule(s + f"{long}/(kernel|bias)", target + f"{short}/{{1}}") for long, short in names.items()
  ]
