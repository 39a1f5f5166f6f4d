"""TA-Tok checkpoints of the reference (`ta_tok.pth`), both ways.

The file is a pickle {"model": {"name", "args", "sd"}}. `args` does not say what the encoder is: the
reference takes so400m-patch14-384 and the NaFlex defaults. The encoder's unread blocks, its last
norm and head, the decoder's head and the scale layer reach no output; they are kept in a second
tree, "unused", so that an export is complete.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tarjax.convert.plan import cut_tensors, fuse_tensors
from tarjax.convert.rules import (
  ConversionError,
  Rule,
  Tree,
  flatten,
  to_params,
  to_state_dict,
  transpose,
  unflatten,
)
from tarjax.convert.siglip2 import (
  HEAD_CUTS,
  Tensors,
  naflex_config_from_hf,
  nhwc,
  shapes_of,
  vision_config_from_hf,
  vision_rules,
  vision_shapes,
)
from tarjax.models.ta_tok import SCALES, TaTok, TaTokConfig, pool

SO400M = {
  "hidden_size": 1152,
  "intermediate_size": 4304,
  "num_hidden_layers": 27,
  "num_attention_heads": 16,
  "image_size": 384,
  "patch_size": 14,
}
LAST_LAYERS = ("norm/", "head/")  # of an image tower, after its blocks


def ta_tok_config(
  args: Mapping[str, Any],
  encoder: Mapping[str, Any] = SO400M,
  decoder: Mapping[str, Any] | None = None,
) -> TaTokConfig:
  """The reference's constructor arguments -> TaTokConfig.

  Args:
    args: `args` of the file.
    encoder: transformers' config of the encoder.
    decoder: what differs from the defaults of transformers' Siglip2VisionConfig.

  Raises:
    ValueError: a quantiser other than SimVQ, or an input size that is not the encoder's.
  """
  vision = vision_config_from_hf(encoder)
  bottleneck = args["bottleneck"]["args"]
  quantiser = bottleneck["regularizer"]
  if quantiser["name"] != "simvq":
    raise ValueError(f"the quantiser is {quantiser['name']!r}; tarjax reads simvq")
  if args.get("input_size", vision.image) != vision.image:
    raise ValueError(f"input_size {args['input_size']} and the encoder's {vision.image} differ")
  width, options = bottleneck["bottleneck_dim"], quantiser["args"]
  fixed = {
    "patch_size": 1,
    "num_channels": width,
    "hidden_size": vision.width,
    "num_hidden_layers": args.get("decoder_depth", 3),
  }
  return TaTokConfig(
    encoder=vision,
    decoder=naflex_config_from_hf({**(decoder or {}), **fixed}),
    codes=options["codebook_size"],
    width=width,
    l2_normalized=options.get("l2_normalized", False),
    stochastic=options.get("stochastic", False),
    temperature=options.get("stochastic_temperature", 0.03),
    select_layer=args.get("select_layer_id", -2),
  )


def ta_tok_rules(config: TaTokConfig, level: str = "vision_model.") -> list[Rule]:
  """The table; `level` is the prefix inside the decoder's names."""
  decoder, q = "decoder." + level, r"bottleneck\.regularizer\."
  # fmt: off
  return [
      *vision_rules(r"encoder\.", "encoder/", config.encoder),
      *vision_rules(decoder.replace(".", r"\."), "decoder/", config.decoder),
      Rule(r"encode_task_layer\.0\.weight",              "encode_task/kernel",  transpose),
      Rule(r"encode_task_layer\.0\.bias",                "encode_task/bias"),
      Rule(r"decode_task_layer\.0\.weight",              "decode_task1/kernel", transpose),
      Rule(r"decode_task_layer\.0\.bias",                "decode_task1/bias"),
      Rule(r"decode_task_layer\.2\.weight",              "decode_task2/kernel", transpose),
      Rule(r"decode_task_layer\.2\.bias",                "decode_task2/bias"),
      Rule(r"bottleneck\.(in_linear|out_linear)\.weight", "{1}/kernel",         transpose),
      Rule(r"bottleneck\.(in_linear|out_linear)\.bias",  "{1}/bias"),
      Rule(q + r"embedding\.weight",                     "quantizer/embedding"),
      Rule(q + r"embedding_proj\.weight",                "quantizer/proj/kernel", transpose),
      Rule(q + r"embedding_proj\.bias",                  "quantizer/proj/bias"),
      Rule(q + r"stochastic_temperature_inv",            "quantizer/temperature_inv"),
      Rule(r"scale_layer\.(shift|scale)",                "scale_layer/{1}"),
  ]
  # fmt: on


def split_tower(tower: Tree, blocks: int) -> tuple[Tree, Tree]:
  """An image tower -> (what hidden state `blocks` needs, the rest); `join` is the inverse."""
  used, unused = {}, {}
  for name, array in flatten(tower).items():
    if name.startswith(LAST_LAYERS):
      unused[name] = array
    elif name.startswith("blocks/"):
      used[name] = array[:blocks]
      if len(array) > blocks:
        unused[name] = array[blocks:]
    else:
      used[name] = array
  return unflatten(used), unflatten(unused)


def join(used: Tree, unused: Tree) -> Tree:
  """Two trees into one; arrays that are in both are one stack of layers."""
  first, second = flatten(used), flatten(unused)
  both = {k: np.concatenate([first[k], second[k]]) for k in first.keys() & second.keys()}
  return unflatten({**first, **second, **both})


def import_ta_tok(config: TaTokConfig, tensors: Tensors) -> tuple[Tree, Tree]:
  """A state dict -> (parameters of `TaTok`, unused).

  A file without the unused tensors is complete too. The teacher that training files may hold is
  left out.

  Raises:
    ConversionError: names or shapes that do not fit the config, or pixels scaled otherwise than
      to [-1, 1].
  """
  kept = {n: t for n, t in tensors.items() if not n.startswith("teacher")}
  level = "vision_model." if any(n.startswith("decoder.vision_model.") for n in kept) else ""
  tree = to_params(ta_tok_rules(config, level), cut_tensors(HEAD_CUTS, kept))
  scaling = tree.pop("scale_layer", {})
  if any((buffer != 0.5).any() for buffer in scaling.values()):
    raise ConversionError("scale_layer maps pixels otherwise than to [-1, 1]")
  shapes = shapes_of(TaTok(config), image_shape(config))
  if "norm" in tree.get("encoder", {}):
    shapes |= {"encoder": vision_shapes(config.encoder), "decoder": vision_shapes(config.decoder)}
  check_shapes(tree, shapes)
  encoder, rest = split_tower(tree["encoder"], config.blocks)
  decoder = dict(tree["decoder"])
  head = {"head": decoder.pop("head")} if "head" in decoder else {}
  unused = {"encoder": rest, "decoder": head, "scale_layer": scaling}
  return {**tree, "encoder": encoder, "decoder": decoder}, {k: v for k, v in unused.items() if v}


def check_shapes(tree: Tree, shapes: Tree) -> None:
  """Raises a ConversionError unless the tree has the names and shapes of the model."""
  identity = [Rule(name, name) for name in flatten(tree)]
  to_params(identity, flatten(tree), shapes)


def image_shape(config: TaTokConfig) -> jax.Array:
  side = config.encoder.image
  return jnp.zeros((1, side, side, config.encoder.channels))


def export_ta_tok(
  config: TaTokConfig, params: Tree, unused: Tree, level: str = "vision_model."
) -> dict[str, np.ndarray]:
  """The inverse of `import_ta_tok`; `level` "" gives the decoder's names in transformers 5."""
  tensors = to_state_dict(ta_tok_rules(config, level), join(params, unused))
  return fuse_tensors(HEAD_CUTS, tensors)


def read_ta_tok(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """A `.pth` of the reference -> (constructor arguments, state dict); needs torch.

  bfloat16 tensors become float32.

  Raises:
    ConversionError: a file of another layout.
  """
  import torch

  file = torch.load(path, map_location="cpu", weights_only=True)
  model = file.get("model") if isinstance(file, dict) else None
  if not isinstance(model, dict) or not {"args", "sd"} <= model.keys():
    raise ConversionError(f"{path} is no TA-Tok file: it lacks model.args and model.sd")
  half = torch.bfloat16  # numpy has none
  tensors = {n: (t.float() if t.dtype == half else t).numpy() for n, t in model["sd"].items()}
  return model["args"], tensors


def run_parity(
  config: Mapping[str, Any], tensors: Tensors, inputs: Tensors
) -> dict[str, np.ndarray]:
  """Runs a converted checkpoint on recorded inputs; the names and layouts are the record's."""
  cfg = ta_tok_config(
    config["ta_tok_args"],
    config.get("encoder_vision_config", SO400M),
    config.get("decoder_siglip2_defaults"),
  )
  params = jax.tree.map(jnp.asarray, import_ta_tok(cfg, tensors)[0])
  model = TaTok(cfg)

  def run(method, *args):
    return jax.jit(nn.apply(method, model))({"params": params}, *args)

  table = run(TaTok.codebook)
  states = run(TaTok.features, scaled(inputs["x"]))
  out: dict[str, Any] = {"emb": table, "hidden_select": states}
  for s in SCALES:
    found = run(lambda m, x, s=s: _record(m, x, s), states)
    found["margin"] = _margin(found["unregularized_z"], table, cfg.stochastic)
    out |= {f"s{s}.{name}": value for name, value in found.items()}
  if "rand_indices" in inputs:
    out["rand_rec"] = run(TaTok.decode_indices, jnp.asarray(inputs["rand_indices"], jnp.int32))
  if "x_big" in inputs:
    big = run(lambda m, x: _record(m, m.features(x), 1), scaled(inputs["x_big"]))
    big["margin"] = _margin(big["unregularized_z"], table, cfg.stochastic)
    out |= {f"x_big.{name}": big[name] for name in ("vq_feats", "indices", "margin")}
  if "x5d" in inputs:
    frames = inputs["x5d"].swapaxes(1, 2)  # [b time c y x]
    video = run(TaTok.__call__, scaled(frames.reshape(-1, *frames.shape[2:])))
    out |= {f"x5d.{name}": video[name] for name in ("indices", "rec")}
  int64 = {name: np.int64 for name in out if name.endswith(".indices")}
  return {name: np.asarray(value, int64.get(name)) for name, value in out.items()}


def scaled(images: np.ndarray) -> jax.Array:
  """[b c y x] in [0, 1] -> [b y x c] in [-1, 1]."""
  return (nhwc(images) - 0.5) / 0.5


def _record(model: TaTok, states: jax.Array, scale: int) -> dict[str, Any]:
  """Every recorded tensor of one scale but the margin."""
  feats = nn.tanh(model.encode_task(pool(states, scale)))
  found = model.quantize(states, scale)
  return {
    "vq_feats": feats,
    "projected_z": model.in_linear(feats),
    "unregularized_z": found["z"],
    "indices": found["indices"],
    "regularized_z": found["quant"],
    "bottleneck_out": model.out_linear(found["quant"]),
    "rec": model.decode(found["quant"]),
    "decode_from_indices": model.decode_indices(found["indices"]),
  }


def _margin(z: jax.Array, table: jax.Array, cosine: bool) -> np.ndarray:
  """Second best minus best score of the code search, float32[b n]."""
  exact, codes = np.asarray(z, np.float64), np.asarray(table, np.float64)
  dots = exact @ codes.T  # [b n e]
  far = np.square(exact).sum(-1, keepdims=True) + np.square(codes).sum(-1) - 2 * dots
  best = np.partition(-dots if cosine else far, 1, -1)
  return (best[..., 1] - best[..., 0]).astype(np.float32)
