"""SigLIP and SigLIP2 checkpoints of Hugging Face transformers, both ways.

Three kinds, by `model_type`: "siglip" (both towers), "siglip_vision_model" and, for NaFlex,
"siglip2_vision_model". Published fixed-resolution SigLIP2 checkpoints are of the first kind. Names
may carry the level `vision_model.` (transformers 4) or lack it (5).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tarjax import losses
from tarjax.convert.plan import Cut, cut_tensors, fuse_tensors
from tarjax.convert.rules import (
  Fn,
  Rule,
  Tree,
  conv,
  merge_heads,
  split_bias,
  split_heads,
  to_params,
  to_state_dict,
  transpose,
)
from tarjax.models.siglip2 import (
  NaFlexConfig,
  NaFlexTower,
  Siglip2,
  TextConfig,
  TextTower,
  VisionConfig,
  VisionTower,
  resize_positions,
)

Tensors = Mapping[str, np.ndarray]
Config = VisionConfig | TextConfig | NaFlexConfig

scalar = Fn(lambda w: w.reshape(()), lambda w: w.reshape(1))  # [1] <-> []
HEAD_CUTS = (  # a pooling head's in_proj_{weight,bias} [3d ...] is q, k and v
  Cut(
    r"(.*head\.attention\.)in_proj_(weight|bias)",
    ("{0}q_proj.{1}", "{0}k_proj.{1}", "{0}v_proj.{1}"),
    (1, 1, 1),
  ),
)


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
  """What all three towers share; absent keys have the defaults of transformers."""
  act = config.get("hidden_act", "gelu_pytorch_tanh")
  if act != "gelu_pytorch_tanh":
    raise ValueError(f"hidden_act is {act!r}; only gelu_pytorch_tanh is SigLIP2")
  return {
    "width": config.get("hidden_size", 768),
    "depth": config.get("num_hidden_layers", 12),
    "heads": config.get("num_attention_heads", 12),
    "mlp": config.get("intermediate_size", 3072),
    "eps": config.get("layer_norm_eps", 1e-6),
  }


def vision_config_from_hf(config: Mapping[str, Any]) -> VisionConfig:
  """A `vision_config` dict of transformers -> VisionConfig."""
  return VisionConfig(
    image=config.get("image_size", 224),
    patch=config.get("patch_size", 16),
    channels=config.get("num_channels", 3),
    **_common(config),
  )


def text_config_from_hf(config: Mapping[str, Any]) -> TextConfig:
  """A `text_config` dict of transformers -> TextConfig."""
  return TextConfig(
    vocab=config.get("vocab_size", 32000),
    length=config.get("max_position_embeddings", 64),
    out=config.get("projection_size"),
    **_common(config),
  )


def naflex_config_from_hf(config: Mapping[str, Any]) -> NaFlexConfig:
  """A dict of transformers' Siglip2VisionConfig -> NaFlexConfig."""
  return NaFlexConfig(
    channels=config.get("num_channels", 3) * config.get("patch_size", 16) ** 2,
    positions=config.get("num_patches", 256),
    **_common(config),
  )


def block_rules(source: str, target: str, heads: int) -> list[Rule]:
  """Blocks under the pattern `source` (which ends before "encoder") -> `target`blocks/."""
  s, t = source + r"encoder\.layers\.(\d+)\.", target + "blocks/"
  # fmt: off
  return [
      Rule(s + r"layer_norm(1|2)\.weight",           t + "norm{1}/scale"),
      Rule(s + r"layer_norm(1|2)\.bias",             t + "norm{1}/bias"),
      Rule(s + r"self_attn\.(q|k|v)_proj\.weight",   t + "attn/{1}/kernel",  split_heads(heads)),
      Rule(s + r"self_attn\.(q|k|v)_proj\.bias",     t + "attn/{1}/bias",    split_bias(heads)),
      Rule(s + r"self_attn\.out_proj\.weight",       t + "attn/out/kernel",  merge_heads(heads)),
      Rule(s + r"self_attn\.out_proj\.bias",         t + "attn/out/bias"),
      Rule(s + r"mlp\.(fc1|fc2)\.weight",            t + "mlp/{1}/kernel",   transpose),
      Rule(s + r"mlp\.(fc1|fc2)\.bias",              t + "mlp/{1}/bias"),
  ]
  # fmt: on


def vision_rules(source: str, target: str, config: VisionConfig | NaFlexConfig) -> list[Rule]:
  """An image tower; its packed in-projection must be unpacked (`HEAD_CUTS`)."""
  s, t, at, h = source, target, target + "head/attn/", config.heads
  patch = conv if isinstance(config, VisionConfig) else transpose
  a, m = s + r"head\.attention\.", s + r"head\.mlp\."
  # fmt: off
  return [
      Rule(s + r"embeddings\.patch_embedding\.weight",    t + "patch/kernel", patch),
      Rule(s + r"embeddings\.patch_embedding\.bias",      t + "patch/bias"),
      Rule(s + r"embeddings\.position_embedding\.weight", t + "position"),
      *block_rules(s, t, h),
      Rule(s + r"post_layernorm\.weight",                 t + "norm/scale"),
      Rule(s + r"post_layernorm\.bias",                   t + "norm/bias"),
      Rule(s + r"head\.probe",                            t + "head/probe"),
      Rule(a + r"(q|k|v)_proj\.weight",                   at + "{1}/kernel",  split_heads(h)),
      Rule(a + r"(q|k|v)_proj\.bias",                     at + "{1}/bias",    split_bias(h)),
      Rule(a + r"out_proj\.weight",                       at + "out/kernel",  merge_heads(h)),
      Rule(a + r"out_proj\.bias",                         at + "out/bias"),
      Rule(s + r"head\.layernorm\.weight",                t + "head/norm/scale"),
      Rule(s + r"head\.layernorm\.bias",                  t + "head/norm/bias"),
      Rule(m + r"(fc1|fc2)\.weight",                      t + "head/mlp/{1}/kernel",  transpose),
      Rule(m + r"(fc1|fc2)\.bias",                        t + "head/mlp/{1}/bias"),
  ]
  # fmt: on


def text_rules(source: str, target: str, config: TextConfig) -> list[Rule]:
  s, t = source, target
  # fmt: off
  return [
      Rule(s + r"embeddings\.token_embedding\.weight",    t + "embed/embedding"),
      Rule(s + r"embeddings\.position_embedding\.weight", t + "position"),
      *block_rules(s, t, config.heads),
      Rule(s + r"final_layer_norm\.weight",               t + "norm/scale"),
      Rule(s + r"final_layer_norm\.bias",                 t + "norm/bias"),
      Rule(s + r"head\.weight",                           t + "head/kernel", transpose),
      Rule(s + r"head\.bias",                             t + "head/bias"),
  ]
  # fmt: on


def shapes_of(module, *args) -> Tree:
  """The parameters that a module has for these inputs: nested dict of shapes, nothing computed."""
  return nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *args)["params"])


def vision_shapes(config: VisionConfig | NaFlexConfig) -> Tree:
  """Parameters of a whole image tower."""
  if isinstance(config, NaFlexConfig):
    return shapes_of(NaFlexTower(config), jnp.zeros((1, 1, config.channels)))
  size = (1, config.image, config.image, config.channels)
  return shapes_of(VisionTower(config), jnp.zeros(size))


def text_shapes(config: TextConfig) -> Tree:
  return shapes_of(TextTower(config), jnp.zeros((1, 1), jnp.int32))


def model_config(config: Mapping[str, Any]) -> dict[str, Config]:
  """A transformers config -> {"vision": its image tower, "text": its text tower if any}.

  Raises:
    ValueError: another `model_type`.
  """
  kind = config.get("model_type")
  if kind == "siglip":
    vision = vision_config_from_hf(config.get("vision_config") or {})
    return {"vision": vision, "text": text_config_from_hf(config.get("text_config") or {})}
  if kind == "siglip_vision_model":
    return {"vision": vision_config_from_hf(config)}
  if kind == "siglip2_vision_model":
    return {"vision": naflex_config_from_hf(config)}
  raise ValueError(f"model_type {kind!r} is no SigLIP checkpoint that tarjax reads")


def siglip2_rules(configs: Mapping[str, Config], level: str) -> list[Rule]:
  """The table of a checkpoint whose image tower's names begin with `level`, a plain prefix."""
  source = level.replace(".", r"\.")
  vision: Any = configs["vision"]
  if "text" not in configs:
    return vision_rules(source, "", vision)
  text: Any = configs["text"]
  # fmt: off
  return [
      *vision_rules(source, "vision/", vision),
      *text_rules(r"text_model\.", "text/", text),
      Rule(r"logit_scale", "logit_scale", scalar),
      Rule(r"logit_bias",  "logit_bias",  scalar),
  ]
  # fmt: on


def import_siglip2(config: Mapping[str, Any], tensors: Tensors) -> Tree:
  """A checkpoint of transformers -> parameters.

  Args:
    config: its config.json.
    tensors: its state dict.

  Returns:
    the tree of `Siglip2`, or of one tower when the checkpoint holds one.

  Raises:
    ConversionError: names or shapes that do not fit the config.
  """
  configs = model_config(config)
  vision: Any = configs["vision"]
  shapes = vision_shapes(vision)
  if "text" in configs:
    text: Any = configs["text"]
    one = jax.ShapeDtypeStruct((), np.float32)
    shapes = {"vision": shapes, "text": text_shapes(text), "logit_scale": one, "logit_bias": one}
  level = "vision_model." if any(n.startswith("vision_model.") for n in tensors) else ""
  kept = {n: t for n, t in tensors.items() if not n.endswith("position_ids")}
  return to_params(siglip2_rules(configs, level), cut_tensors(HEAD_CUTS, kept), shapes)


def export_siglip2(
  config: Mapping[str, Any], params: Tree, level: str = "vision_model."
) -> dict[str, np.ndarray]:
  """The inverse of `import_siglip2`; `level` "" gives the names of transformers 5."""
  rules = siglip2_rules(model_config(config), level)
  return fuse_tensors(HEAD_CUTS, to_state_dict(rules, params))


def run_parity(
  config: Mapping[str, Any], tensors: Tensors, inputs: Tensors
) -> dict[str, np.ndarray]:
  """Runs a converted checkpoint on recorded inputs; the names and layouts are the record's."""
  configs = model_config(config)
  params = jax.tree.map(jnp.asarray, import_siglip2(config, tensors))
  vision: Any = configs["vision"]
  if "text" in configs:
    out = _run_full(vision, configs["text"], params, inputs)
  elif isinstance(vision, NaFlexConfig):
    out = _run_naflex(vision, params, inputs)
  else:
    apply = jax.jit(lambda p, x: VisionTower(vision).apply({"params": p}, x, collect=True))
    last, pooled, states = apply(params, nhwc(inputs["pixel_values"]))
    out = {f"hidden_states.{i}": x for i, x in enumerate(states)}
    out |= {"last_hidden_state": last, "post_layernorm": last, "pooler_output": pooled}
  return {name: np.asarray(value) for name, value in out.items()}


def nhwc(images: np.ndarray) -> jax.Array:
  """[b c y x] -> [b y x c]."""
  return jnp.asarray(np.asarray(images).transpose(0, 2, 3, 1))


def _run_full(vision: VisionConfig, text: Any, params: Tree, inputs: Tensors) -> dict[str, Any]:
  @jax.jit
  def tower(ids, mask=None):
    return TextTower(text).apply({"params": params["text"]}, ids, mask, collect=True)

  images, ids = nhwc(inputs["pixel_values"]), jnp.asarray(inputs["input_ids"], jnp.int32)
  out: dict[str, Any] = {}
  calls: dict[str, tuple[Any, ...]] = {"": (ids,)}
  if "input_ids_short" in inputs:
    calls["short."] = (jnp.asarray(inputs["input_ids_short"], jnp.int32),)
  if "attention_mask" in inputs:
    calls["masked."] = (ids, jnp.asarray(inputs["attention_mask"]) > 0)
  for prefix, args in calls.items():
    last, pooled, states = tower(*args)
    out |= {prefix + "text_last_hidden_state": last, prefix + "text_pooler_output": pooled}
    if not prefix:
      out |= {f"text_hidden_states.{i}": x for i, x in enumerate(states)}
  model = Siglip2(vision, text)
  image, words, scale, bias = jax.jit(model.apply)({"params": params}, images, ids[: len(images)])
  logits = jnp.exp(scale) * image @ words.T + bias  # [image text]
  loss = losses.sigmoid_loss(image, words, scale, bias)
  out |= {"image_embeds": image, "text_embeds": words, "loss": loss}
  return out | {"logits_per_image": logits, "logits_per_text": logits.T}


def _run_naflex(config: NaFlexConfig, params: Tree, inputs: Tensors) -> dict[str, Any]:
  tower: Any = NaFlexTower(config)
  grids = [(int(y), int(x)) for y, x in inputs["spatial_shapes"]]
  x = jnp.asarray(inputs["pixel_values"])
  mask = jnp.asarray(inputs["attention_mask"]) > 0

  @jax.jit
  def run(x, mask):
    return tower.apply({"params": params}, x, grids, mask, collect=True)

  last, pooled, states = run(x, mask)
  out = {f"hidden_states.{i}": state for i, state in enumerate(states)}
  out |= {"pos": resize_positions(params["position"], grids, x.shape[1])}
  out |= {"last_hidden_state": last, "pooler_output": pooled}
  if "full.pixel_values" in inputs:
    full = jnp.asarray(inputs["full.pixel_values"])
    last, pooled, _ = tower.apply({"params": params}, full, grids[:1] * len(full))
    out |= {"full.last_hidden_state": last, "full.pooler_output": pooled}
  return out
