"""DC-AE in diffusers' layout (`vae/` of a SANA folder, class AutoencoderDC), both ways."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tarjax.convert.rules import Fn, Rule, Tree, conv, to_params, to_state_dict, transpose
from tarjax.convert.vqvae import nchw, pointwise
from tarjax.models.dc_ae import DcAe, DcAeConfig, Stage

# What a config.json may leave out: the defaults of AutoencoderDC.
DEFAULTS: dict[str, Any] = {
  "in_channels": 3,
  "latent_channels": 32,
  "attention_head_dim": 32,
  "encoder_block_types": "ResBlock",
  "decoder_block_types": "ResBlock",
  "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
  "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
  "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
  "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
  "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
  "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
  "upsample_block_type": "pixel_shuffle",
  "downsample_block_type": "pixel_unshuffle",
  "decoder_norm_types": "rms_norm",
  "decoder_act_fns": "silu",
  "encoder_out_shortcut": True,
  "decoder_in_shortcut": True,
  "decoder_conv_act_fn": "relu",
  "scaling_factor": 1.0,
}
BLOCKS = {"ResBlock": False, "EfficientViTBlock": True}


def dc_ae_config(config: Mapping[str, Any], **fields) -> DcAeConfig:
  """A diffusers config.json -> DcAeConfig; `fields` (dtype) are passed on.

  Raises:
    ValueError: a block, norm, activation or resampling that is not implemented, by its key.
  """
  c = DEFAULTS | dict(config)
  depth = len(c["encoder_block_out_channels"])
  if set(each(c["decoder_norm_types"], depth)) != {"rms_norm"}:
    raise ValueError(f"decoder_norm_types={c['decoder_norm_types']!r}; only rms_norm is supported")
  resampling = ("downsample_block_type", "upsample_block_type")
  known = (("Conv", "pixel_unshuffle"), ("interpolate", "pixel_shuffle"))
  for key, names in zip(resampling, known, strict=True):
    if str(c[key]).lower() not in (n.lower() for n in names):
      raise ValueError(f"{key}={c[key]!r} is none of {names}")
  return DcAeConfig(
    channels=c["in_channels"],
    latent=c["latent_channels"],
    encoder=stages(c, "encoder", "silu"),
    decoder=stages(c, "decoder", c["decoder_act_fns"]),
    head_dim=c["attention_head_dim"],
    fold_down=c["downsample_block_type"] == "pixel_unshuffle",
    fold_up=c["upsample_block_type"] != "interpolate",
    encoder_shortcut=c["encoder_out_shortcut"],
    decoder_shortcut=c["decoder_in_shortcut"],
    act=c["decoder_conv_act_fn"],
    scaling=c["scaling_factor"],
    **fields,
  )


def each(value: Any, count: int) -> tuple:
  """One value for all stages, or one for each."""
  return (value,) * count if isinstance(value, str) else tuple(value)


def stages(c: Mapping[str, Any], side: str, act: Any) -> tuple[Stage, ...]:
  widths = c[f"{side}_block_out_channels"]
  types = each(c[f"{side}_block_types"], len(widths))
  for name in types:
    if name not in BLOCKS:
      raise ValueError(f"{side}_block_types={types}: {name!r} is none of {list(BLOCKS)}")
  columns = (
    widths,
    c[f"{side}_layers_per_block"],
    [BLOCKS[name] for name in types],
    c[f"{side}_qkv_multiscales"],
    each(act, len(widths)),
  )
  return tuple(Stage(*row) for row in zip(*columns, strict=True))


def diffusers_config(c: DcAeConfig) -> dict[str, Any]:
  """DcAeConfig -> the keys of a diffusers config.json."""
  names = {attention: name for name, attention in BLOCKS.items()}
  config = {
    "_class_name": "AutoencoderDC",
    "in_channels": c.channels,
    "latent_channels": c.latent,
    "attention_head_dim": c.head_dim,
    "downsample_block_type": "pixel_unshuffle" if c.fold_down else "Conv",
    "upsample_block_type": "pixel_shuffle" if c.fold_up else "interpolate",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": [s.act for s in c.decoder],
    "encoder_out_shortcut": c.encoder_shortcut,
    "decoder_in_shortcut": c.decoder_shortcut,
    "decoder_conv_act_fn": c.act,
    "scaling_factor": c.scaling,
  }
  for side, parts in (("encoder", c.encoder), ("decoder", c.decoder)):
    config |= {
      f"{side}_block_types": [names[s.attention] for s in parts],
      f"{side}_block_out_channels": [s.width for s in parts],
      f"{side}_layers_per_block": [s.depth for s in parts],
      f"{side}_qkv_multiscales": [list(s.scales) for s in parts],
    }
  return config


def grouped(head_dim: int) -> Fn:
  """A 1 x 1 convolution in groups, [h*j k 1 1] <-> [h k j]."""
  return Fn(
    lambda w: w.reshape(-1, head_dim, w.shape[1]).swapaxes(1, 2),
    lambda w: w.swapaxes(1, 2).reshape(-1, w.shape[1], 1, 1),
  )


def dc_ae_rules(c: DcAeConfig) -> list[Rule]:
  """The table for a model with these stages."""
  side = "(encoder|decoder)"
  first = {"encoder": r"conv_in", "decoder": r"conv_out"}  # a resampling if stage 0 is empty
  table = [
    *conv_rules(side + r"\.(conv_in|conv_out)", "{1}/{2}"),
    *(
      rule
      for name, ends in first.items()
      for rule in conv_rules(rf"{name}\.{ends}\.conv", f"{name}/{ends}/conv")
    ),
    Rule(r"decoder\.norm_out\.weight", "decoder/norm_out/scale"),
    Rule(r"decoder\.norm_out\.bias", "decoder/norm_out/bias"),
  ]
  for i, stage in enumerate(c.encoder):
    source = rf"encoder\.down_blocks\.{i}\."
    for j in range(stage.depth):
      table += block_rules(c, stage, rf"{source}{j}\.", f"encoder/stage{i}_block{j}/")
    table += conv_rules(rf"{source}{stage.depth}\.conv", f"encoder/down{i}/conv")
  for i, stage in enumerate(c.decoder):
    source, up = rf"decoder\.up_blocks\.{i}\.", int(i + 1 < len(c.decoder))
    for j in range(stage.depth):
      table += block_rules(c, stage, rf"{source}{j + up}\.", f"decoder/stage{i}_block{j}/")
    table += conv_rules(rf"{source}0\.conv", f"decoder/up{i}/conv")
  return table


def conv_rules(source: str, target: str) -> list[Rule]:
  """A convolution with bias."""
  return [
    Rule(source + r"\.weight", target + "/kernel", conv),
    Rule(source + r"\.bias", target + "/bias"),
  ]


def block_rules(c: DcAeConfig, stage: Stage, source: str, target: str) -> list[Rule]:
  """A block; its source ends in an escaped dot, its target in a slash."""
  if not stage.attention:
    return [
      Rule(source + r"(conv1|conv2)\.weight", target + "{1}/kernel", conv),
      Rule(source + r"conv1\.bias", target + "conv1/bias"),
      Rule(source + r"norm\.weight", target + "norm/scale"),
      Rule(source + r"norm\.bias", target + "norm/bias"),
    ]
  attn, point = source + r"attn\.", grouped(c.head_dim)
  table = [
    Rule(attn + r"to_(q|k|v)\.weight", target + "{1}/kernel", transpose),
    Rule(attn + r"to_out\.weight", target + "out/kernel", transpose),
    Rule(attn + r"norm_out\.weight", target + "norm/scale"),
    Rule(attn + r"norm_out\.bias", target + "norm/bias"),
    *gated_conv_rules(source + r"conv_out\.", target + "mlp/"),
    Rule(source + r"conv_out\.norm\.weight", target + "mlp/norm/scale"),
    Rule(source + r"conv_out\.norm\.bias", target + "mlp/norm/bias"),
  ]
  for i in range(len(stage.scales)):
    scale = rf"{attn}to_qkv_multiscale\.{i}\."
    table += [
      Rule(scale + r"proj_in\.weight", f"{target}scale{i}_depth/kernel", conv),
      Rule(scale + r"proj_out\.weight", f"{target}scale{i}_point/kernel", point),
    ]
  return table


def gated_conv_rules(source: str, target: str) -> list[Rule]:
  """A `GatedConv` without its norm; SANA's blocks hold one too."""
  return [
    Rule(source + r"conv_inverted\.weight", target + "up/kernel", pointwise),
    Rule(source + r"conv_inverted\.bias", target + "up/bias"),
    Rule(source + r"conv_depth\.weight", target + "depth/kernel", conv),
    Rule(source + r"conv_depth\.bias", target + "depth/bias"),
    Rule(source + r"conv_point\.weight", target + "down/kernel", pointwise),
  ]


def from_torch(config: DcAeConfig, sd: Mapping[str, np.ndarray]) -> Tree:
  """The original's state dict -> params of `DcAe(config)`.

  Raises:
    ConversionError: names or shapes that are not those of this model.
  """
  return to_params(dc_ae_rules(config), sd, abstract_params(config))


def abstract_params(c: DcAeConfig) -> Tree:
  """Shapes of the params of `DcAe(c)`."""
  images = jax.ShapeDtypeStruct((1, c.factor, c.factor, c.channels), jnp.float32)
  boxed = jax.eval_shape(DcAe(c).init, jax.random.key(0), images)["params"]
  return nn.meta.unbox(boxed)


def to_torch(config: DcAeConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Params -> the original's state dict."""
  return to_state_dict(dc_ae_rules(config), params)


def run_parity(config: Mapping[str, Any], sd, inputs) -> dict[str, np.ndarray]:
  """Outputs of a recorded run, for every image size "YxX" among the inputs (all NCHW)."""
  c = dc_ae_config(config)
  variables, model = {"params": from_torch(c, sd)}, DcAe(c)

  @jax.jit
  def run(variables, x, z):
    latent: Any = model.apply(variables, x, method="encode")
    rec = model.apply(variables, latent, method="decode")
    return latent, rec, model.apply(variables, z / c.scaling, method="decode")

  outputs = {}
  for size in sorted({name.split(".")[0] for name in inputs}):
    x, z = (inputs[f"{size}.{name}"].transpose(0, 2, 3, 1) for name in "xz")
    for name, value in zip(("latent", "rec", "from_z"), run(variables, x, z), strict=True):
      outputs[f"{size}.{name}"] = nchw(value)
  return outputs
