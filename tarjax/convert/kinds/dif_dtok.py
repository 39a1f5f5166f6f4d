"""Dif-DTok: the `transformer/` of a SANA or Tar-SANA folder, SanaTransformer2DModel of diffusers.

A run that was imported has all of SANA among its params; one that was trained on the condition
alone has the rest in the tree "frozen", under sana/.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tarjax.convert.dif_dtok import abstract_params, dif_dtok_config, dif_dtok_rules
from tarjax.convert.dif_dtok import diffusers_config as sana_config
from tarjax.convert.kinds import Found, diffusers_class
from tarjax.convert.plan import Place, Table
from tarjax.convert.rules import flatten
from tarjax.convert.tensors import Source
from tarjax.models.dif_dtok import DifDtokConfig

TASK, FORMAT, FILE = "dif_dtok", "diffusers", "diffusion_pytorch_model.safetensors"
PARTS = (
  ("embedding of the condition", r"cond/.*"),
  ("cross-attention", r"blocks/cross/.*"),
  ("linear attention, convolutions, tables", r"(sana/)?blocks/(?!cross/).*"),
  (
    "embedding of patches and times, output",
    r"(sana/)?(patch|time|guidance|modulation|out|table).*",
  ),
)
CLASS, MARK = "SanaTransformer2DModel", "caption_norm.weight"
DOWN, SHIFT = 32, 3.0  # pixels of a latent's side, and the noise levels' shift, of the releases


def recognise(source: Source, given: Mapping[str, Any]) -> Found | None:
  config = {**source.config, **given}
  if not diffusers_class(source, config, CLASS, MARK):
    return None
  model = dif_dtok_config(config)
  run = {
    "task": TASK,
    "model": dataclasses.asdict(model),
    "trained": "all",
    "dc_ae_size": model.size * DOWN,
    "shift": SHIFT,
    "sampler": "dpm",
  }
  side = run["dc_ae_size"]
  assumed = (
    f"pictures of {side} pixels a side and shift {SHIFT}, as neither VAE nor scheduler is here"
  )
  return Found("dif_dtok", run, table(run, {}), {"assumed": [assumed]})


def check(source: Source, found: Found) -> None:
  pass


def table(config: Mapping[str, Any], layout: Mapping[str, Any]) -> Table:
  model = DifDtokConfig(**config["model"])
  shapes = {name: leaf.shape for name, leaf in flatten(abstract_params(model)).items()}
  rest = Place(r"((?!cond/|blocks/cross/).*)", "frozen", "sana/{0}")
  places = () if config.get("trained", "all") == "all" else (rest,)
  return Table(dif_dtok_rules(model), shapes, places=places)


def around(config: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
  return sana_config(DifDtokConfig(**config["model"]))
