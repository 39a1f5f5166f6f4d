"""The VQ-16 checkpoint of LlamaGen: `vq_ds16_t2i.pt` and its like, both ways."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tarjax.convert.rules import Fn, Rule, Tree, conv, to_params, to_state_dict
from tarjax.models.vqvae import VqVae, VqVaeConfig

USAGE = "quantize.codebook_used"  # a log of recent indices; no weight
USAGE_SIZE = 65536

pointwise = Fn(lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])  # OI11 <-> [in out]


def vqvae_config(config: Mapping[str, Any]) -> VqVaeConfig:
  """The original's argument names -> VqVaeConfig."""
  return VqVaeConfig(
    channels=config.get("ch", 128),
    multipliers=tuple(config["ch_mult"]),
    blocks=config["num_res_blocks"],
    latent=config["z_channels"],
    codes=config["codebook_size"],
    code_width=config["codebook_embed_dim"],
    l2_normalized=config["codebook_l2_norm"],
    groups=config.get("group_norm_groups", 32),
    commit=config["commit_loss_beta"],
    entropy_ratio=config["entropy_loss_ratio"],
  )


def vqvae_rules(config: VqVaeConfig) -> list[Rule]:
  """The table for a model with these numbers of levels and blocks."""
  level = "(" + "|".join(map(str, range(len(config.multipliers)))) + ")"
  block = "(" + "|".join(map(str, range(config.blocks + 1))) + ")"
  side, stage = "(encoder|decoder)", r"(encoder|decoder)\.conv_blocks\." + level
  # fmt: off
  return [
      Rule(side + r"\.(conv_in|conv_out)\.weight",   "{1}/{2}/kernel", conv),
      Rule(side + r"\.(conv_in|conv_out)\.bias",     "{1}/{2}/bias"),
      Rule(side + r"\.norm_out\.weight",             "{1}/norm_out/scale"),
      Rule(side + r"\.norm_out\.bias",               "{1}/norm_out/bias"),
      Rule(stage + r"\.downsample\.conv\.weight",    "{1}/down{2}/kernel", conv),
      Rule(stage + r"\.downsample\.conv\.bias",      "{1}/down{2}/bias"),
      Rule(stage + r"\.upsample\.conv\.weight",      "{1}/up{2}/kernel", conv),
      Rule(stage + r"\.upsample\.conv\.bias",        "{1}/up{2}/bias"),
      *res_rules(stage + r"\.res\." + block,         "{1}/level{2}_res{3}", 4),
      *attn_rules(stage + r"\.attn\." + block,       "{1}/level{2}_attn{3}", 4),
      *res_rules(side + r"\.mid\.0",                 "{1}/mid/res0", 2),
      *attn_rules(side + r"\.mid\.1",                "{1}/mid/attn", 2),
      *res_rules(side + r"\.mid\.2",                 "{1}/mid/res1", 2),
      Rule(r"(quant_conv|post_quant_conv)\.weight",  "{1}/kernel", pointwise),
      Rule(r"(quant_conv|post_quant_conv)\.bias",    "{1}/bias"),
      Rule(r"quantize\.embedding\.weight",           "codebook"),
  ]
  # fmt: on


def res_rules(source: str, target: str, group: int) -> list[Rule]:
  """A residual block; `group` is the number of the first group after those of `source`."""
  part = f"{target}/{{{group}}}"
  return [
    Rule(source + r"\.(norm1|norm2)\.weight", part + "/scale"),
    Rule(source + r"\.(conv1|conv2)\.weight", part + "/kernel", conv),
    Rule(source + r"\.(norm1|norm2|conv1|conv2)\.bias", part + "/bias"),
    Rule(source + r"\.nin_shortcut\.weight", f"{target}/shortcut/kernel", pointwise),
    Rule(source + r"\.nin_shortcut\.bias", f"{target}/shortcut/bias"),
  ]


def attn_rules(source: str, target: str, group: int) -> list[Rule]:
  """An attention block; `group` is the number of the first group after those of `source`."""
  part = f"{target}/{{{group}}}"
  return [
    Rule(source + r"\.norm\.weight", f"{target}/norm/scale"),
    Rule(source + r"\.(q|k|v)\.weight", part + "/kernel", pointwise),
    Rule(source + r"\.proj_out\.weight", f"{target}/out/kernel", pointwise),
    Rule(source + r"\.(norm|q|k|v)\.bias", part + "/bias"),
    Rule(source + r"\.proj_out\.bias", f"{target}/out/bias"),
  ]


def from_torch(config: VqVaeConfig, sd: Mapping[str, np.ndarray]) -> Tree:
  """The original's state dict -> params of `VqVae(config)`; the usage log is left out.

  Raises:
    ConversionError: names or shapes that are not those of this model.
  """
  images = jax.ShapeDtypeStruct((1, config.factor, config.factor, 3), jnp.float32)
  boxed = jax.eval_shape(VqVae(config).init, jax.random.key(0), images)["params"]
  tensors = {k: v for k, v in sd.items() if k != USAGE}
  return to_params(vqvae_rules(config), tensors, nn.meta.unbox(boxed))


def to_torch(config: VqVaeConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Params -> the original's state dict, with an empty usage log."""
  return to_state_dict(vqvae_rules(config), params) | {USAGE: np.zeros(USAGE_SIZE, np.float32)}


def run_parity(config: Mapping[str, Any], sd, inputs) -> dict[str, np.ndarray]:
  """Outputs of a recorded run, for every image size "YxX" among the inputs (images NCHW)."""
  c = vqvae_config(config)
  variables = {"params": from_torch(c, sd)}
  model = VqVae(c)

  @jax.jit
  def read(x):
    z: Any = model.apply(variables, x, method="encode")
    q: Any = model.apply(variables, z, method="quantize")
    return z, q, model.apply(variables, q["quant"], method="decode")

  @functools.partial(jax.jit, static_argnums=1)
  def draw(codes, grid):
    return model.apply(variables, codes, grid, method="decode_indices")

  outputs = {}
  for size in sorted({name.split(".")[0] for name in inputs}):
    z, q, rec = read(inputs[f"{size}.x"].transpose(0, 2, 3, 1))
    found = {
      "h": nchw(z),
      "indices": np.asarray(q["indices"]).reshape(-1),
      "quant": nchw(q["quant"]),
      "rec": nchw(rec),
      "decode_code": nchw(draw(q["indices"], z.shape[1:3])),
      "rand_decode": nchw(draw(inputs[f"{size}.rand_code"].astype(np.int32), z.shape[1:3])),
      "train_losses": np.stack([q["codebook_loss"], q["commit_loss"], q["entropy_loss"]]),
    }
    outputs |= {f"{size}.{name}": value for name, value in found.items()}
  return outputs


def nchw(x) -> np.ndarray:
  return np.asarray(x).transpose(0, 3, 1, 2)
