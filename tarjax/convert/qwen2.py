"""Qwen2ForCausalLM checkpoints of Hugging Face, both ways."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tarjax.convert.rules import (
  ConversionError,
  Rule,
  Tree,
  merge_heads,
  split_bias,
  split_heads,
  to_params,
  to_state_dict,
  transpose,
)
from tarjax.models.attention import causal_mask
from tarjax.models.qwen2 import Qwen2, Qwen2Config
from tarjax.sampling import generate_tokens

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
VISION = "model.vision_tower."  # a Tar language model may carry its tokenizer along


def qwen2_config(config: Mapping[str, Any], **fields) -> Qwen2Config:
  """A Hugging Face config.json -> Qwen2Config; `fields` (dtype, remat) are passed on.

  Raises:
    ValueError: a variant of Qwen2 that is not implemented, by the name of its key.
  """
  rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
  if rope.get("rope_type", rope.get("type", "default")) != "default":
    raise ValueError(f"rope scaling {rope} is not supported; only the plain kind is")
  if config.get("use_sliding_window"):
    raise ValueError("use_sliding_window=true is not supported")
  if config.get("hidden_act", "silu") != "silu":
    raise ValueError(f"hidden_act={config['hidden_act']!r} is not supported; only silu is")
  heads, width = config["num_attention_heads"], config["hidden_size"]
  return Qwen2Config(
    vocab=config["vocab_size"],
    width=width,
    depth=config["num_hidden_layers"],
    heads=heads,
    kv_heads=config.get("num_key_value_heads") or heads,
    head_dim=config.get("head_dim") or width // heads,
    mlp=config["intermediate_size"],
    theta=float(config.get("rope_theta") or rope.get("rope_theta", 1e4)),
    eps=config.get("rms_norm_eps", 1e-6),
    tied=config.get("tie_word_embeddings", False),
    **fields,
  )


def hf_config(c: Qwen2Config) -> dict[str, Any]:
  """Qwen2Config -> the keys of a Hugging Face config.json."""
  return {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": c.vocab,
    "hidden_size": c.width,
    "num_hidden_layers": c.depth,
    "num_attention_heads": c.heads,
    "num_key_value_heads": c.kv_heads,
    "head_dim": c.head_dim,
    "intermediate_size": c.mlp,
    "rope_theta": c.theta,
    "rms_norm_eps": c.eps,
    "tie_word_embeddings": c.tied,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "torch_dtype": "float32",
  }


def qwen2_rules(c: Qwen2Config) -> list[Rule]:
  """The table: one line per weight."""
  layer, q, kv = r"model\.layers\.(\d+)\.", c.heads, c.kv_heads
  attn, mlp = layer + r"self_attn\.", layer + r"mlp\."
  # fmt: off
  table = [
      Rule(r"model\.embed_tokens\.weight",              "embed/embedding"),
      Rule(attn + r"q_proj\.weight",                    "blocks/attn/q/kernel",   split_heads(q)),
      Rule(attn + r"q_proj\.bias",                      "blocks/attn/q/bias",     split_bias(q)),
      Rule(attn + r"(k|v)_proj\.weight",                "blocks/attn/{1}/kernel", split_heads(kv)),
      Rule(attn + r"(k|v)_proj\.bias",                  "blocks/attn/{1}/bias",   split_bias(kv)),
      Rule(attn + r"o_proj\.weight",                    "blocks/attn/out/kernel", merge_heads(q)),
      Rule(mlp + r"(gate|up|down)_proj\.weight",        "blocks/mlp/{1}/kernel",  transpose),
      Rule(layer + r"input_layernorm\.weight",          "blocks/norm1/scale"),
      Rule(layer + r"post_attention_layernorm\.weight", "blocks/norm2/scale"),
      Rule(r"model\.norm\.weight",                      "norm/scale"),
  ]
  # fmt: on
  return table if c.tied else [*table, Rule(r"lm_head\.weight", "lm_head/kernel", transpose)]


def from_torch(config: Qwen2Config, sd: Mapping[str, np.ndarray]) -> Tree:
  """The original's state dict -> params of `Qwen2(config)`.

  `model.vision_tower.*` is left out, and so is the copy of the table that some tied checkpoints
  hold as `lm_head.weight`.

  Raises:
    ConversionError: names or shapes that are not those of this model.
  """
  ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  boxed = jax.eval_shape(Qwen2(config).init, jax.random.key(0), ids)["params"]
  tensors = {k: v for k, v in sd.items() if not k.startswith(VISION)}
  if config.tied and HEAD in tensors:
    if not np.array_equal(tensors[HEAD], tensors.get(TABLE, [])):
      raise ConversionError(f"{HEAD} differs from {TABLE}, but the model is tied")
    del tensors[HEAD]
  return to_params(qwen2_rules(config), tensors, nn.meta.unbox(boxed))


def to_torch(config: Qwen2Config, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Params -> the original's state dict; a tied model has no `lm_head.weight`."""
  return to_state_dict(qwen2_rules(config), params)


def run_parity(
  config: Mapping[str, Any],
  sd: Mapping[str, np.ndarray],
  inputs: Mapping[str, np.ndarray],
  tensors: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
  """Outputs of a recorded run: padded on the right, on the left, from embeddings, and greedy.

  Args:
    config: Hugging Face config of the model.
    sd: its state dict.
    inputs: `ids_right`, `mask_right`, `labels`, `ids_left`, `mask_left`, `position_ids_left`.
    tensors: what was recorded, as manifests list it: name -> (dtype, shape, meaning); it gives
      the number of greedy words, which is else 12.
  """
  c = qwen2_config(config)
  params = jax.tree.map(jnp.asarray, from_torch(c, sd))
  variables, model = {"params": params}, Qwen2(c, collect=True)

  @jax.jit
  def forward(mask, ids=None, embeds=None, positions=None):
    seen = causal_mask(jnp.ones_like(mask)) & mask.astype(bool)[:, None]
    args: Any = {"embeds": embeds, "positions": positions, "mask": seen}
    hidden, states = model.apply(variables, ids, **args)
    return model.apply(variables, hidden, method="logits"), states

  right, left = inputs["mask_right"], inputs["mask_left"]
  embeds: Any = model.apply(variables, inputs["ids_right"], method="embed")
  logits, states = forward(right, inputs["ids_right"])
  labels = inputs["labels"][:, 1:]
  chosen = np.where(labels == -100, 0, labels)[..., None]
  losses = -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), chosen, -1)[..., 0]
  positions = inputs["position_ids_left"]
  seeds = np.zeros(len(left), np.uint32)
  max_new = tensors["out.gen.tokens"][1][1] if tensors else 12
  args: Any = {"max_new": max_new, "temperature": 0.0, "also": "logits"}
  tokens, scores = generate_tokens(Qwen2(c), params, inputs["ids_left"], left, seeds, **args)
  outputs = {
    "right.logits": logits,
    "right.loss": losses[labels != -100].mean(),
    **{f"right.hidden_states.{i}": x for i, x in enumerate(states)},
    "left.logits_default_positions": forward(left, inputs["ids_left"])[0],
    "left.logits": forward(left, inputs["ids_left"], positions=positions)[0],
    "embeds.logits": forward(right, embeds=0.5 * embeds)[0],
    "gen.tokens": tokens,
    "gen.scores": scores,
  }
  return {k: np.asarray(v) for k, v in outputs.items()}
