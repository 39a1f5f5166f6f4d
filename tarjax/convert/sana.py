"""A whole SANA or Tar-SANA folder of diffusers, in and out.

  model_index.json  transformer/  vae/  scheduler/  negative_prompt_embeds.pth

becomes a folder with two runs, transformer/ and vae/, and in original/ all else, as it came: Tar
has no use for a text encoder, but SanaPipeline loads no folder without one. What those say of
sampling is in the transformer's run: shift and sampler, the pictures' size, and the negative
embeddings as its null condition, where training keeps its own. A trained run becomes such a folder
too, with the DC-AE that it was trained over.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tarjax import __version__
from tarjax.checkpoint import parse_spec
from tarjax.config import write_json
from tarjax.convert.dif_dtok import plan_from
from tarjax.convert.exporting import Run, export_run, open_run
from tarjax.convert.formats import Sha256, Tensor, check_sums
from tarjax.convert.importing import ORIGINAL, PLACES, SPARE, examine, fresh, write_run
from tarjax.convert.kinds import Found
from tarjax.convert.pickles import load_pickle, tensor_of
from tarjax.convert.plan import FLOATS, Array, Plan, total
from tarjax.convert.rules import ConversionError
from tarjax.convert.store import TreeWriter
from tarjax.convert.tensors import Source, open_source, read_json
from tarjax.models.dc_ae import DcAeConfig

PARTS = {"transformer": "dif_dtok", "vae": "dc_ae"}
NEGATIVE = "negative_prompt_embeds"
SCHEDULER = "scheduler_config.json"
# By a run's `sampler`: the class of diffusers, the key of its shift, what else it must be told.
SCHEDULERS: dict[str, tuple[str, str, dict[str, Any]]] = {
  "dpm": (
    "DPMSolverMultistepScheduler",
    "flow_shift",
    {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
  ),
  "euler": ("FlowMatchEulerDiscreteScheduler", "shift", {}),
}
CLASSES = {"transformer": "SanaTransformer2DModel", "vae": "AutoencoderDC"}


class Part(NamedTuple):
  """One of PARTS, looked at."""

  source: Source
  found: Found
  plan: Plan


def is_pipeline(path: Path) -> bool:
  """Whether a folder is a whole SANA, and not one of its parts."""
  return (path / "model_index.json").is_file() or all((path / name).is_dir() for name in PARTS)


def is_imported(path: Path) -> bool:
  """Whether a folder holds the runs of a SANA."""
  return (path / ORIGINAL).is_dir() and all((path / n / "config.json").is_file() for n in PARTS)


class Pipeline(NamedTuple):
  """A folder of which nothing is wrong.

  Attributes:
    parts: by their names in PARTS.
    negative: float[s w], or None if the folder has none.
    kept: files and folders that are copied.
    said: sentences on what was assumed.
  """

  parts: dict[str, Part]
  negative: Tensor | None
  kept: list[Path]
  said: list[str]


def open_pipeline(path: Path, name: str | None = None, revision: str | None = None) -> Pipeline:
  """Looks at everything that a folder holds.

  Raises:
    ConversionError: the complete list of what is missing, damaged or does not fit.
  """
  parts: dict[str, Part] = {}
  problems, negative, sampling, said = [], None, {}, []
  for part, kind in PARTS.items():
    try:
      if not (path / part).is_dir():
        raise ConversionError(f"{path} has no {part}/")
      source = open_source(path / part, f"{name or path}/{part}", revision)
      parts[part] = Part(source, *examine(source, {}))
      if parts[part].found.kind != kind:
        raise ConversionError(f"{path / part} is a {parts[part].found.kind}, not a {kind}")
    except ConversionError as e:
      problems.append(str(e))
  try:
    sampling, said = read_scheduler(path / "scheduler")
  except ConversionError as e:
    problems.append(str(e))
  try:
    negative = read_negative(path / f"{NEGATIVE}.pth")
  except ConversionError as e:
    problems.append(str(e))
  if not problems:
    problems += misfits(path, parts, negative)
  if problems:
    raise ConversionError("\n  ".join(problems))
  parts["transformer"] = with_sampling(parts, sampling)
  kept = [i for i in sorted(path.iterdir()) if i.name not in PARTS and not i.name.startswith(".")]
  return Pipeline(parts, negative, kept, said)


def read_scheduler(folder: Path) -> tuple[dict[str, Any], list[str]]:
  """What a run needs to know of a scheduler's config, and what of it the samplers do not do.

  Raises:
    ConversionError: a file that is damaged.
  """
  config = read_json(folder, SCHEDULER)
  if not config:
    return {}, [f"the shift of the releases, as {folder.parent} has no scheduler/{SCHEDULER}"]
  dpm, said = "solver_order" in config, []
  shift = config.get("flow_shift" if dpm else "shift", 1.0)
  if isinstance(shift, bool) or not isinstance(shift, int | float) or shift <= 0:
    raise ConversionError(f"{folder / SCHEDULER}: the shift {shift!r} is no positive number")
  try:
    plan_from(config, 2)
  except (TypeError, ValueError) as e:
    said.append(f"tarjax's sampler in the place of the scheduler's, whose {e}")
  for key, usual in (("num_train_timesteps", 1000), ("solver_order", 2)):
    if config.get(key, usual) != usual:
      said.append(f"{key}={usual}, not the scheduler's {config[key]}")
  return {"shift": float(shift), "sampler": "dpm" if dpm else "euler"}, said


def read_negative(path: Path) -> Tensor | None:
  """The embeddings of the negative prompt, a bare tensor of tokens and widths.

  Raises:
    ConversionError: something else.
  """
  if not path.is_file():
    return None
  check_sums(path)
  found = tensor_of(path, NEGATIVE, load_pickle(path, mapped=False), mapped=False)
  if len(found.shape) != 2 or 0 in found.shape or found.dtype not in FLOATS:
    what = f"{found.dtype}{list(found.shape)}"
    raise ConversionError(f"{path} holds {what}, not floats of [tokens, width]")
  return found


def misfits(path: Path, parts: Mapping[str, Part], negative: Tensor | None) -> list[str]:
  """Sizes of the parts against each other."""
  sana, vae = (parts[name].found.config["model"] for name in PARTS)
  problems = []
  if sana["channels"] != vae["latent"]:
    widths = f"{sana['channels']} channels, the vae's latents {vae['latent']}"
    problems.append(f"{path}: the transformer has {widths}")
  if negative and negative.shape[1] != sana["cond_width"]:
    widths = f"{negative.shape[1]} wide, the transformer's condition {sana['cond_width']}"
    problems.append(f"{path}: {NEGATIVE} is {widths}")
  return problems


def with_sampling(parts: Mapping[str, Part], sampling: Mapping[str, Any]) -> Part:
  """The transformer, whose run says what the scheduler and the vae decide."""
  part, vae = parts["transformer"], DcAeConfig(**parts["vae"].found.config["model"])
  side = part.found.config["model"]["size"] * vae.factor
  config = {**part.found.config, **sampling, "dc_ae_size": side}
  return part._replace(found=part.found._replace(config=config, layout={}))


def import_pipeline(
  path: Path, to: Path, name: str | None = None, revision: str | None = None
) -> list[str]:
  """Writes the folder `to`; returns sentences that a user should know.

  Raises:
    ConversionError: a folder that does not fit, with all that is wrong; a place that is taken.
  """
  pipeline = open_pipeline(path, name, revision)
  files = [f for item in pipeline.kept for f in ([item] if item.is_file() else item.rglob("*"))]
  size = total(a for part in pipeline.parts.values() for a in part.plan.arrays.values())
  with fresh(to, size + sum(f.stat().st_size for f in files) + SPARE) as partial:
    original = partial / ORIGINAL
    original.mkdir(parents=True)
    for item in pipeline.kept:
      copy(item, original / item.name)
    for part, (source, found, plan) in pipeline.parts.items():
      write_run(source, found, plan, partial / part)
    if pipeline.negative:
      write_null(partial / "transformer" / PLACES["frozen"], pipeline.negative.read())
    sums = {str(f.relative_to(path)): Sha256(f)() for f in files if f.is_file()}
    record = {"tarjax": __version__, "source": name or str(path), "revision": revision}
    record["files"] = sums
    (partial / "provenance.json").write_text(json.dumps(record, indent=2) + "\n")
  said = [f"assumed: {sentence}" for sentence in pipeline.said]
  if not pipeline.negative:
    said.append(f"no {NEGATIVE}.pth: pictures can be drawn without guidance only")
  return [*said, f"{to}: {', '.join(PARTS)}, {size / 1e9:.3f} GB, from {path}"]


def copy(item: Path, to: Path) -> None:
  if item.is_dir():
    shutil.copytree(item, to)
  else:
    shutil.copyfile(item, to)


def write_null(folder: Path, null: np.ndarray) -> None:
  """The frozen tree of a run: its null condition float[s w]."""
  writer = TreeWriter(folder, {"null": Array(null.shape, null.dtype, False)})
  try:
    writer.write("null", None, null)
    writer.finish()
  finally:
    writer.close()


def export_pipeline(run: Path, to: Path, form: str | None) -> list[str]:
  """The inverse of `import_pipeline`."""
  size = total(a for part in PARTS for a in open_run(str(run / part)).arrays.values())
  size += sum(f.stat().st_size for f in (run / ORIGINAL).rglob("*"))
  said = []
  with fresh(to, size) as partial:
    partial.mkdir()
    for part in PARTS:
      said += export_run(str(run / part), partial / part, form)
    for item in sorted((run / ORIGINAL).iterdir()):
      copy(item, partial / item.name)
  return said


def is_trained(run: Run) -> bool:
  """Whether a run is a Dif-DTok's training, which names the DC-AE of its pictures."""
  return run.kind == PARTS["transformer"] and "dc_ae_from" in run.config


def export_trained(run: Run, spec: str, to: Path, form: str | None) -> list[str]:
  """A trained Dif-DTok -> a folder that SanaPipeline loads; without vae/ if the DC-AE is not here.

  Args:
    run: what `spec`, "DIR[@STEP]", says.
    spec: of the Dif-DTok.
    to: the folder to make.
    form: None or "diffusers".

  Raises:
    ConversionError: a run that does not hold what the format needs, with every name.
  """
  vae = os.path.normpath(run.path / run.config["dc_ae_from"])
  parts = {"transformer": spec} | ({"vae": vae} if os.path.isdir(parse_spec(vae)[0]) else {})
  said = [] if "vae" in parts else [f"no vae/, as its DC-AE, {vae}, is not there: add it yourself"]
  name, key, options = SCHEDULERS[run.config.get("sampler", "dpm")]
  with fresh(to, total(a for part in parts.values() for a in open_run(part).arrays.values())) as p:
    (p / "scheduler").mkdir(parents=True)
    for part, source in parts.items():
      said += export_run(source, p / part, form)
    config = {"_class_name": name, key: run.config["shift"], **options}
    write_json(p / "scheduler" / SCHEDULER, config)
    save_negative(p / f"{NEGATIVE}.pth", run.trees["frozen"].read("null"))
    index = {
      part: ["diffusers", CLASSES[part]] if part in parts else [None, None] for part in PARTS
    }
    index |= {"scheduler": ["diffusers", name], "text_encoder": [None, None]}
    write_json(
      p / "model_index.json", {"_class_name": "SanaPipeline", **index, "tokenizer": [None, None]}
    )
  return said


def save_negative(path: Path, null: np.ndarray) -> None:
  """The inverse of `read_negative`."""
  try:
    import torch
  except ImportError as e:
    raise ConversionError(f"{path} is a PyTorch file; writing it needs torch, install it") from e
  torch.save(torch.from_numpy(null), path)
