"""DC-AE: the `vae/` of a SANA or Tar-SANA folder, AutoencoderDC of diffusers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tarjax.convert.dc_ae import abstract_params, dc_ae_config, dc_ae_rules, diffusers_config
from tarjax.convert.kinds import Found, diffusers_class
from tarjax.convert.plan import Table
from tarjax.convert.rules import flatten
from tarjax.convert.tensors import Source
from tarjax.models.dc_ae import DcAeConfig

TASK, FORMAT, FILE = "dc_ae", "diffusers", "diffusion_pytorch_model.safetensors"
PARTS = (("encoder", r"encoder/.*"), ("decoder", r"decoder/.*"))
CLASS, MARK = "AutoencoderDC", "decoder.norm_out.weight"


def recognise(source: Source, given: Mapping[str, Any]) -> Found | None:
  config = {**source.config, **given}
  if not diffusers_class(source, config, CLASS, MARK):
    return None
  run = {"task": TASK, "model": dataclasses.asdict(dc_ae_config(config))}
  return Found("dc_ae", run, table(run, {}), {})


def check(source: Source, found: Found) -> None:
  pass


def table(config: Mapping[str, Any], layout: Mapping[str, Any]) -> Table:
  model = DcAeConfig(**config["model"])
  shapes = {name: leaf.shape for name, leaf in flatten(abstract_params(model)).items()}
  return Table(dc_ae_rules(model), shapes)


def around(config: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
  return diffusers_config(DcAeConfig(**config["model"]))
