"""AR de-tokenizer checkpoints of Tar: `ar_dtok_lp_256px.pth` and its like, both ways.

A file is {"model": {"name", "args", "sd"}}; the name, such as llama-abs-LP, fixes layers, heads and
width, and args hold the rest.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tarjax.convert.plan import Cut, cut_tensors, fuse_tensors
from tarjax.convert.rules import (
  ConversionError,
  Fn,
  Rule,
  Tree,
  merge_heads,
  split_heads,
  split_pairs,
  to_params,
  to_state_dict,
  transpose,
)
from tarjax.models.ar_dtok import FAMILY, ArDtok, ArDtokConfig, mlp_width, sine_table
from tarjax.sampling import filter_logits, generate_codes

PREFIX = "llama-abs-"
KINDS = {"clip_cond": "features", "indice_cond": "indices", "class_cond": "class"}
TABLES = {"features": "clip_proj", "indices": "clip_proj", "class": "cls_embedding"}
GREEDY = re.compile(r"out\.greedy_cfg([\d.]+?)(?:_interval(\d+))?\.tokens")
SHORT = re.compile(r"first (\d+) conditioning tokens.*cfg_scale ([\d.]+)")

first = Fn(lambda w: w[0], lambda w: w[None])  # [1 rows d] <-> [rows d]


def ar_dtok_config(config: Mapping[str, Any], **fields) -> ArDtokConfig:
  """The original's argument names -> ArDtokConfig; `fields` (dtype, remat) are passed on.

  Args:
    config: all arguments in one dict, or {"name", "args"} as in a file. A name outside the family
      needs its {"n_layer", "n_head", "dim"} under "name_means".

  Raises:
    ValueError: an unknown name or kind of condition.
  """
  if "name" in config:
    sizes = config.get("name_means") or family_sizes(config["name"])
    config = {**sizes, **config["args"]}
  kind = config.get("model_type", "clip_cond")
  if kind not in KINDS or config.get("frame_prediction"):
    raise ValueError(f"model_type={kind!r} with frame_prediction is none of {list(KINDS)}")
  vocab = {"indice_cond": "cond_vocab_size", "class_cond": "num_classes"}.get(kind)
  factor = config.get("ffn_dim_multiplier")
  return ArDtokConfig(
    width=config["dim"],
    depth=config["n_layer"],
    heads=config["n_head"],
    kv_heads=config.get("n_kv_head") or 0,
    mlp=mlp_width(config["dim"], config.get("multiple_of", 256), factor),
    vocab=config["vocab_size"],
    cond=KINDS[kind],
    cond_width=config.get("cond_dim", 1152),
    cond_vocab=config[vocab] if vocab else 0,
    cond_length=config["cls_token_num"],
    length=config["max_seq_len"],
    fixed_positions=config.get("use_fixed_pe", False),
    token_dropout=config.get("token_dropout_p", 0.1),
    resid_dropout=config.get("resid_dropout_p", 0.1),
    ffn_dropout=config.get("ffn_dropout_p", 0.1),
    cond_dropout=config.get("class_dropout_prob", 0.1),
    eps=config.get("norm_eps", 1e-5),
    **fields,
  )


def family_sizes(name: str) -> dict[str, int]:
  """ "llama-abs-LP" -> {"n_layer": 30, "n_head": 20, "dim": 1280}."""
  size = name.removeprefix(PREFIX)
  if size not in FAMILY:
    raise ValueError(f"model name {name!r} is none of {[PREFIX + n for n in FAMILY]}")
  return dict(zip(("n_layer", "n_head", "dim"), FAMILY[size], strict=True))


def torch_args(c: ArDtokConfig) -> dict[str, Any]:
  """The args of a file: everything that the name does not fix."""
  kind = {v: k for k, v in KINDS.items()}[c.cond]
  vocab = {"indices": {"cond_vocab_size": c.cond_vocab}, "class": {"num_classes": c.cond_vocab}}
  return {
    "n_kv_head": c.kv_heads,
    "model_type": kind,
    "cond_dim": c.cond_width,
    "vocab_size": c.vocab,
    "cls_token_num": c.cond_length,
    "max_seq_len": c.length,
    "use_fixed_pe": c.fixed_positions,
    "token_dropout_p": c.token_dropout,
    "resid_dropout_p": c.resid_dropout,
    "ffn_dropout_p": c.ffn_dropout,
    "class_dropout_prob": c.cond_dropout,
    "norm_eps": c.eps,
    **vocab.get(c.cond, {}),
  }


def qkv_cuts(c: ArDtokConfig) -> tuple[Cut, ...]:
  """wqkv is wq, wk and wv, one above the other."""
  parts = tuple(f"{{0}}w{letter}.weight" for letter in "qkv")
  shares = (c.heads, c.kv_heads, c.kv_heads)
  return (Cut(r"(layers\.\d+\.attention\.)wqkv\.weight", parts, shares),)


def ar_dtok_rules(c: ArDtokConfig) -> list[Rule]:
  """The table, for a state dict whose wqkv is cut into wq, wk and wv."""
  layer, cond = r"layers\.(\d+)\.", TABLES[c.cond]
  attn, mlp = layer + r"attention\.", layer + r"feed_forward\."
  turned = split_pairs if c.rotary else split_heads
  # fmt: off
  table = [
      Rule(r"tok_embeddings\.weight",           "embed/embedding"),
      Rule(attn + r"wq\.weight",                "blocks/attn/q/kernel",   turned(c.heads)),
      Rule(attn + r"wk\.weight",                "blocks/attn/k/kernel",   turned(c.kv_heads)),
      Rule(attn + r"wv\.weight",                "blocks/attn/v/kernel",   split_heads(c.kv_heads)),
      Rule(attn + r"wo\.weight",                "blocks/attn/out/kernel", merge_heads(c.heads)),
      Rule(mlp + r"w1\.weight",                 "blocks/mlp/gate/kernel", transpose),
      Rule(mlp + r"w3\.weight",                 "blocks/mlp/up/kernel",   transpose),
      Rule(mlp + r"w2\.weight",                 "blocks/mlp/down/kernel", transpose),
      Rule(layer + r"attention_norm\.weight",   "blocks/norm1/scale"),
      Rule(layer + r"ffn_norm\.weight",         "blocks/norm2/scale"),
      Rule(r"norm\.weight",                     "norm/scale"),
      Rule(r"output\.weight",                   "head/kernel",            transpose),
  ]
  if c.cond == "features":
    table += [
      Rule(cond + r"\.weight",                  "cond/kernel",            transpose),
      Rule(cond + r"\.bias",                    "cond/bias"),
    ]
  else:
    table += [Rule(cond + r"\.embedding_table\.weight", "cond/embedding")]
  # fmt: on
  learned = not (c.fixed_positions or c.rotary)
  return [*table, Rule("abs_pe", "positions", first)] if learned else table


def from_torch(config: ArDtokConfig, sd: Mapping[str, np.ndarray]) -> Tree:
  """The original's state dict -> params of `ArDtok(config)`.

  Raises:
    ConversionError: names or shapes that are not those of this model. A position table of another
      shape is one; the original drops it without a word.
  """
  tensors = dict(sd)
  shape = (1, config.rows, config.width)
  if "abs_pe" in tensors and tensors["abs_pe"].shape != shape:
    raise ConversionError(
      f"abs_pe is {tensors['abs_pe'].shape} in the checkpoint and {shape} in the model: convert "
      "with the cond_length and length that the checkpoint was trained with, then resize params["
      "'positions'] with resize_positions"
    )
  if config.fixed_positions:
    table = tensors.pop("abs_pe", shape)
    if not np.allclose(table, sine_table(config.rows, config.width), atol=1e-5):
      raise ConversionError(f"abs_pe {shape} is not the sine table of fixed_positions")
  cond = {"features": (1, 1, config.cond_width), "indices": (1, 1), "class": (1,)}[config.cond]
  dtype = jnp.float32 if config.cond == "features" else jnp.int32
  args = jax.ShapeDtypeStruct(cond, dtype), jax.ShapeDtypeStruct((1, config.length), jnp.int32)
  boxed = jax.eval_shape(ArDtok(config).init, jax.random.key(0), *args)["params"]
  pieces = cut_tensors(qkv_cuts(config), tensors)
  return to_params(ar_dtok_rules(config), pieces, nn.meta.unbox(boxed))


def to_torch(config: ArDtokConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Params -> the original's state dict."""
  tensors = to_state_dict(ar_dtok_rules(config), params)
  if config.fixed_positions:
    tensors["abs_pe"] = sine_table(config.rows, config.width)[None]
  return fuse_tensors(qkv_cuts(config), tensors)


def resize_positions(table: np.ndarray, cond_length: int, length: int) -> np.ndarray:
  """A position table for images of another number of codes, float32[rows d] -> float32[rows' d].

  The rows of the condition stay. Those of the codes, as laid out for the longest condition, are
  seen as a square (the last code, which is never fed, repeats its neighbour) and resized.

  Raises:
    ValueError: a number of codes that is not a square.
  """
  codes = np.concatenate([table[cond_length:], table[-1:]])
  old, new = round(len(codes) ** 0.5), round(length**0.5)
  if old * old != len(codes) or new * new != length:
    raise ValueError(f"{len(codes)} -> {length} codes: both must be squares")
  grid = codes.reshape(old, old, -1)
  resized = jax.image.resize(grid, (new, new, grid.shape[-1]), "linear")
  return np.concatenate([table[:cond_length], np.asarray(resized).reshape(length, -1)[:-1]])


def read_checkpoint(
  path: str | Path, sizes: Mapping[str, int] | None = None
) -> tuple[ArDtokConfig, dict[str, np.ndarray]]:
  """A .pth file -> (config, state dict as numpy). Needs torch, and unpickles tensors only.

  Args:
    path: the file.
    sizes: {"n_layer", "n_head", "dim"}, for a name outside the family.

  Raises:
    ConversionError: a file of another layout.
  """
  import torch

  try:
    model = torch.load(path, map_location="cpu", weights_only=True)["model"]
    name, args, sd = model["name"], model["args"], model["sd"]
  except (KeyError, TypeError, IndexError) as e:
    raise ConversionError(f"{path} does not hold {{'model': {{'name', 'args', 'sd'}}}}") from e
  config = ar_dtok_config({"name": name, "args": args, "name_means": sizes})
  return config, {k: v.float().numpy() for k, v in sd.items()}


def write_checkpoint(path: str | Path, config: ArDtokConfig, params: Mapping[str, Any]) -> None:
  """Writes the layout that `read_checkpoint` reads; sizes outside the family are named "custom"."""
  import torch

  sizes = (config.depth, config.heads, config.width)
  name = PREFIX + next((n for n, s in FAMILY.items() if s == sizes), "custom")
  sd = {k: torch.from_numpy(v) for k, v in to_torch(config, params).items()}
  torch.save({"model": {"name": name, "args": torch_args(config), "sd": sd}}, path)


def run_parity(
  config: Mapping[str, Any],
  sd: Mapping[str, np.ndarray],
  inputs: Mapping[str, np.ndarray],
  tensors: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
  """Outputs of a recorded run: teacher forcing with losses, greedy codes, a shorter condition.

  Args:
    config: the original's arguments, in either form of `ar_dtok_config`.
    sd: the state dict.
    inputs: `cond`, and for teacher forcing `tokens` and `valid`.
    tensors: what was recorded, as manifests list it: name -> (dtype, shape, meaning). Greedy runs
      are out.greedy_cfg<scale>[_interval<n>].tokens; the meaning of out.short.tokens says how many
      condition tokens are left. None runs greedy_cfg1 and greedy_cfg4.
  """
  c = ar_dtok_config(config)
  params, model, outputs = from_torch(c, sd), ArDtok(c), {}
  cond, seeds = inputs["cond"], np.zeros(len(inputs["cond"]), np.uint32)

  def run(name: str, cond: np.ndarray, **settings):
    tokens, logits = generate_codes(
      model, params, cond, seeds, temperature=0.0, return_logits=True, **settings
    )
    outputs.update({f"{name}.tokens": tokens, f"{name}.logits": logits})

  names = ("out.greedy_cfg1.tokens", "out.greedy_cfg4.tokens") if tensors is None else tensors
  for name in names:
    if match := GREEDY.fullmatch(name):
      scale, interval = float(match[1]), -1 if match[2] is None else int(match[2])
      run(name[4:-7], cond, guidance_scale=scale, guidance_interval=interval)
  short = SHORT.search((tensors or {}).get("out.short.tokens", ("", "", ""))[2])
  if short:
    run("short", cond[:, : int(short[1])], guidance_scale=float(short[2]))
  if "tokens" in inputs:
    tokens, valid = inputs["tokens"], inputs["valid"]
    forward: Any = jax.jit(model.apply)
    logits = forward({"params": params}, cond, tokens)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
    outputs["tf.logits"], outputs["tf.loss"] = logits, losses.mean()
    outputs["tf.loss_valid"] = (losses.mean(1) * valid).sum() / valid.sum()
    if short:
      outputs["short.tf.logits"] = forward({"params": params}, cond[:, : int(short[1])], tokens)
  return {k: np.asarray(v) for k, v in outputs.items()}


def run_filter_parity(
  config: Mapping[str, Any], sd: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Probabilities after temperature, top-k and top-p for every (k, p, t) of `cases_k_p_t`."""
  del sd  # a filter has no weights
  return {
    name: np.asarray(jax.nn.softmax(filter_logits(inputs["logits"], t, k, p), -1))
    for name, (k, p, t) in config["cases_k_p_t"].items()
  }
