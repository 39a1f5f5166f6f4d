"""Dif-DTok in diffusers' layout (`transformer/` of a SANA folder, SanaTransformer2DModel)."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tarjax import diffusion
from tarjax.convert import dc_ae
from tarjax.convert.dc_ae import gated_conv_rules
from tarjax.convert.rules import (
  Fn,
  Rule,
  Tree,
  merge_heads,
  split_bias,
  split_heads,
  to_params,
  to_state_dict,
  transpose,
)
from tarjax.convert.vqvae import nchw
from tarjax.models.dc_ae import DcAe
from tarjax.models.dif_dtok import DifDtok, DifDtokConfig

# What a config.json may leave out: the defaults of SanaTransformer2DModel.
DEFAULTS: dict[str, Any] = {
  "in_channels": 32,
  "out_channels": 32,
  "num_attention_heads": 70,
  "attention_head_dim": 32,
  "num_layers": 20,
  "num_cross_attention_heads": 20,
  "cross_attention_head_dim": 112,
  "cross_attention_dim": 2240,
  "caption_channels": 2304,
  "mlp_ratio": 2.5,
  "attention_bias": False,
  "sample_size": 32,
  "patch_size": 1,
  "norm_elementwise_affine": False,
  "norm_eps": 1e-6,
  "interpolation_scale": None,
  "guidance_embeds": False,
  "guidance_embeds_scale": 0.1,
  "qk_norm": None,
  "timestep_scale": 1.0,
}
QK_NORM = "rms_norm_across_heads"

# Values of a scheduler's config.json under which it is the sampler of `tarjax.diffusion`.
DPM: dict[str, tuple] = {
  "solver_order": (1, 2),
  "prediction_type": ("flow_prediction",),
  "algorithm_type": ("dpmsolver++",),
  "solver_type": ("midpoint",),
  "thresholding": (False,),
  "use_flow_sigmas": (True,),
  "final_sigmas_type": ("zero",),
}
EULER: dict[str, tuple] = {
  "invert_sigmas": (False,),
  "shift_terminal": (None,),
  "stochastic_sampling": (False,),
}
EITHER: dict[str, tuple] = {
  "use_dynamic_shifting": (False,),
  "use_karras_sigmas": (False,),
  "use_exponential_sigmas": (False,),
  "use_beta_sigmas": (False,),
  "use_lu_lambdas": (False,),
}


def dif_dtok_config(config: Mapping[str, Any], **fields) -> DifDtokConfig:
  """A diffusers config.json -> DifDtokConfig; `fields` (dtype, remat) are passed on.

  Raises:
    ValueError: a variant that is not implemented, by the name of its key.
  """
  c = DEFAULTS | dict(config)
  width = c["num_attention_heads"] * c["attention_head_dim"]
  if c["qk_norm"] not in (None, QK_NORM):
    raise ValueError(f"qk_norm={c['qk_norm']!r} is neither null nor {QK_NORM!r}")
  if c["cross_attention_dim"] != width:
    raise ValueError(f"cross_attention_dim={c['cross_attention_dim']} is not the width, {width}")
  return DifDtokConfig(
    channels=c["in_channels"],
    out=c["out_channels"] or c["in_channels"],
    width=width,
    depth=c["num_layers"],
    heads=c["num_attention_heads"],
    cross_heads=c["num_cross_attention_heads"],
    cross_head_dim=c["cross_attention_head_dim"],
    mlp_ratio=c["mlp_ratio"],
    cond_width=c["caption_channels"],
    patch=c["patch_size"],
    qkv_bias=c["attention_bias"],
    qk_norm=c["qk_norm"] is not None,
    norm_affine=c["norm_elementwise_affine"],
    eps=c["norm_eps"],
    guidance=c["guidance_embeds_scale"] if c["guidance_embeds"] else 0.0,
    positions=c["interpolation_scale"] or 0.0,
    size=c["sample_size"],
    time_scale=c["timestep_scale"],
    **fields,
  )


def diffusers_config(c: DifDtokConfig) -> dict[str, Any]:
  """DifDtokConfig -> the keys of a diffusers config.json."""
  return {
    "_class_name": "SanaTransformer2DModel",
    "in_channels": c.channels,
    "out_channels": c.out,
    "num_attention_heads": c.heads,
    "attention_head_dim": c.width // c.heads,
    "num_layers": c.depth,
    "num_cross_attention_heads": c.cross_heads,
    "cross_attention_head_dim": c.cross_head_dim,
    "cross_attention_dim": c.width,
    "caption_channels": c.cond_width,
    "mlp_ratio": c.mlp_ratio,
    "dropout": 0.0,
    "attention_bias": c.qkv_bias,
    "sample_size": c.size,
    "patch_size": c.patch,
    "norm_elementwise_affine": c.norm_affine,
    "norm_eps": c.eps,
    "interpolation_scale": c.positions or None,
    "guidance_embeds": bool(c.guidance),
    "guidance_embeds_scale": c.guidance or DEFAULTS["guidance_embeds_scale"],
    "qk_norm": QK_NORM if c.qk_norm else None,
    "timestep_scale": c.time_scale,
  }


def patches(patch: int) -> Fn:
  """A convolution that does not overlap, [d c p p] <-> [p*p*c d]."""
  return Fn(
    lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),
    lambda w: w.reshape(patch, patch, -1, w.shape[-1]).transpose(3, 2, 0, 1),
  )


def dif_dtok_rules(c: DifDtokConfig) -> list[Rule]:
  """The table: one line per weight."""
  block = r"transformer_blocks\.(\d+)\."
  attn, cross, q, x = block + r"attn1\.", block + r"attn2\.", c.heads, c.cross_heads
  embed, caption = r"time_embed\.", r"caption_projection\.linear_(1|2)\."
  time = embed + ("" if c.guidance else r"emb\.") + r"timestep_embedder\.linear_(1|2)\."
  guidance = embed + r"guidance_embedder\.linear_(1|2)\."
  # fmt: off
  return [
      Rule(r"patch_embed\.proj\.weight",  "patch/kernel",                patches(c.patch)),
      Rule(r"patch_embed\.proj\.bias",    "patch/bias"),
      Rule(time + r"weight",              "time/fc{1}/kernel",           transpose),
      Rule(time + r"bias",                "time/fc{1}/bias"),
      Rule(guidance + r"weight",          "guidance/fc{1}/kernel",       transpose),
      Rule(guidance + r"bias",            "guidance/fc{1}/bias"),
      Rule(embed + r"linear\.weight",     "modulation/kernel",           split_heads(6)),
      Rule(embed + r"linear\.bias",       "modulation/bias",             split_bias(6)),
      Rule(caption + r"weight",           "cond/fc{1}/kernel",           transpose),
      Rule(caption + r"bias",             "cond/fc{1}/bias"),
      Rule(r"caption_norm\.weight",       "cond/norm/scale"),
      Rule(block + r"scale_shift_table",  "blocks/table"),
      Rule(attn + r"to_(q|k|v)\.weight",  "blocks/attn/{1}/kernel",      split_heads(q)),
      Rule(attn + r"to_(q|k|v)\.bias",    "blocks/attn/{1}/bias",        split_bias(q)),
      Rule(attn + r"norm_(q|k)\.weight",  "blocks/attn/norm_{1}/scale"),
      Rule(attn + r"to_out\.0\.weight",   "blocks/attn/out/kernel",      merge_heads(q)),
      Rule(attn + r"to_out\.0\.bias",     "blocks/attn/out/bias"),
      Rule(cross + r"to_(q|k|v)\.weight", "blocks/cross/{1}/kernel",     split_heads(x)),
      Rule(cross + r"to_(q|k|v)\.bias",   "blocks/cross/{1}/bias",       split_bias(x)),
      Rule(cross + r"norm_(q|k)\.weight", "blocks/cross/norm_{1}/scale"),
      Rule(cross + r"to_out\.0\.weight",  "blocks/cross/out/kernel",     merge_heads(x)),
      Rule(cross + r"to_out\.0\.bias",    "blocks/cross/out/bias"),
      Rule(block + r"norm2\.weight",      "blocks/norm2/scale"),
      Rule(block + r"norm2\.bias",        "blocks/norm2/bias"),
      *gated_conv_rules(block + r"ff\.", "blocks/mlp/"),
      Rule(r"scale_shift_table",          "table"),
      Rule(r"proj_out\.weight",           "out/kernel",                  transpose),
      Rule(r"proj_out\.bias",             "out/bias"),
  ]
  # fmt: on


def from_torch(config: DifDtokConfig, sd: Mapping[str, np.ndarray]) -> Tree:
  """The original's state dict -> params of `DifDtok(config)`.

  Raises:
    ConversionError: names or shapes that are not those of this model.
  """
  return to_params(dif_dtok_rules(config), sd, abstract_params(config))


def abstract_params(c: DifDtokConfig) -> Tree:
  """Shapes of the params of `DifDtok(c)`."""
  shapes: list[Any] = [(1, c.patch, c.patch, c.channels), (1,), (1, 1, c.cond_width), (1, 1)]
  shapes += [(1,)] if c.guidance else []
  given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  boxed = jax.eval_shape(DifDtok(c).init, jax.random.key(0), *given)["params"]
  return nn.meta.unbox(boxed)


def to_torch(config: DifDtokConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Params -> the original's state dict."""
  return to_state_dict(dif_dtok_rules(config), params)


def plan_from(scheduler: Mapping[str, Any], steps: int) -> diffusion.Plan:
  """A diffusers scheduler's config.json -> the plan of its sampling loop.

  Raises:
    ValueError: a setting that is not implemented, by the name of its key.
  """
  dpm = "solver_order" in scheduler
  for key, allowed in (EITHER | (DPM if dpm else EULER)).items():
    if scheduler.get(key, allowed[-1]) not in allowed:
      raise ValueError(f"{key}={scheduler[key]!r} is none of {allowed}")
  train_steps = scheduler.get("num_train_timesteps", 1000)
  if not dpm:
    return diffusion.euler_plan(steps, scheduler.get("shift", 1.0), train_steps)
  order, shift = scheduler["solver_order"], scheduler.get("flow_shift", 1.0)
  return diffusion.dpm_plan(steps, shift, train_steps, order)


def run_parity(config: Mapping[str, Any], sd, inputs) -> dict[str, np.ndarray]:
  """Outputs of one recorded call, with and without the condition's mask."""
  c = dif_dtok_config(config)
  variables, model = {"params": from_torch(c, sd)}, DifDtok(c, collect=True)
  latents = inputs["hidden_states"].transpose(0, 2, 3, 1)
  given = (inputs["timestep"], inputs["encoder_hidden_states"])
  guidance = inputs.get("guidance")
  apply = jax.jit(lambda v, mask: model.apply(v, latents, *given, mask, guidance))
  run = functools.partial(apply, variables)
  plain, inside = run(None)
  mask = inputs.get("encoder_attention_mask")
  masked, inside = (plain, inside) if mask is None else run(mask)
  outputs = {
    "temb": inside["modulation"].reshape(len(latents), -1),
    "embedded_timestep": inside["time"],
    "caption": inside["cond"],
    **{f"block{i}": x for i, x in enumerate(inside["blocks"])},
  }
  outputs = {name: np.asarray(value) for name, value in outputs.items()}
  return outputs | {"sample": nchw(masked), "nomask": nchw(plain)}


def run_sampling_parity(config: Mapping[str, Any], sd, inputs) -> dict[str, np.ndarray]:
  """Every recorded sampling loop: its times, its latents after each step, its pictures."""
  c, vae = dif_dtok_config(config["transformer"]), dc_ae.dc_ae_config(config["vae"])
  parts = {
    part: {k.removeprefix(part + "."): v for k, v in sd.items() if k.startswith(part + ".")}
    for part in ("transformer", "vae")
  }
  params = {"params": from_torch(c, parts["transformer"])}
  vae_params = {"params": dc_ae.from_torch(vae, parts["vae"])}
  noise = jnp.asarray(inputs["latents"].transpose(0, 2, 3, 1))
  cond, null = inputs["prompt_embeds"], inputs["negative_embeds"]

  @functools.partial(jax.jit, static_argnums=3)
  def sample(params, noise, plan, scale):
    def velocity(x, time, cond, mask):
      return DifDtok(c).apply(params, x, time * c.time_scale, cond, mask)

    return diffusion.sample(velocity, noise, plan, cond, null, scale)

  @jax.jit
  def decode(params, latents):
    pictures: Any = DcAe(vae).apply(params, latents / vae.scaling, method="decode")
    return pictures

  outputs = {}
  for name, run in config["runs"].items():
    plan = plan_from(run["scheduler"], run["steps"])
    latents, trace = sample(params, noise, plan, run["guidance_scale"])
    picture = np.clip(np.asarray(decode(vae_params, latents)) * 0.5 + 0.5, 0, 1)
    found = {
      "timesteps": plan.times,
      "sigmas": plan.sigmas,
      "latents": np.asarray(trace).transpose(0, 1, 4, 2, 3),
      "image": nchw(picture),
      "image_u8": (picture * 255).round().astype(np.uint8),
    }
    outputs |= {f"{name}.{key}": np.asarray(value) for key, value in found.items()}
  return outputs
