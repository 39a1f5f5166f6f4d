"""What a checkpoint holds, without reading a weight: components, parameters, dtypes, origin."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tarjax.convert.exporting import Run, open_run
from tarjax.convert.importing import read_provenance
from tarjax.convert.kinds import Found, load_kind, recognise
from tarjax.convert.plan import Array, Plan, plan_import, total
from tarjax.convert.rules import ConversionError
from tarjax.convert.sana import NEGATIVE, PARTS, is_imported, is_pipeline, open_pipeline
from tarjax.convert.tensors import Source, open_source, read_json

BESIDE = (
  ("teacher", r"teacher/.*"),
  ("TA-Tok", r"ta_tok/.*"),
  ("null condition", r"null"),
  ("kept as it came", r"verbatim/.*"),
)
OTHER = "other"


def inspect(path: str, given: Mapping[str, Any]) -> list[str]:
  """Lines about a run "DIR[@STEP]", a bundle, or files that could be imported.

  Raises:
    UserError, ConversionError: nothing there that can be read.
  """
  folder = Path(path)
  if (folder / "bundle.json").is_file():
    return inspect_bundle(folder)
  if is_imported(folder):
    return inspect_sana(folder)
  if is_pipeline(folder):
    return inspect_pipeline(folder)
  if folder.is_file() or (folder.is_dir() and not is_run(folder)):
    return inspect_files(folder, given)
  return inspect_run(open_run(path))


def is_run(folder: Path) -> bool:
  """Whether config.json is a run's and not a Hugging Face model's."""
  try:
    return "config" in read_json(folder, "config.json")
  except (OSError, ConversionError):
    return False


def inspect_bundle(folder: Path) -> list[str]:
  try:
    components = json.loads((folder / "bundle.json").read_text())["components"]
    items = sorted((str(name), str(place)) for name, place in components.items())
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ConversionError(f"{folder / 'bundle.json'} is damaged: {e}") from e
  lines = [f"{folder}: a bundle of {', '.join(name for name, _ in items)}"]
  for name, place in items:
    if is_run(folder / place):
      lines += ["", f"{name}:", *inspect_run(open_run(str(folder / place)))]
    else:
      there = "there" if (folder / place / "tokenizer.json").is_file() else "missing"
      lines += ["", f"{name}: {folder / place}, {there}"]
  return lines


def inspect_run(run: Run) -> list[str]:
  origin = run.provenance
  lines = [f"{run.path}: {run.kind}, {'imported' if origin else 'trained'}"]
  if origin:
    revision = f" at revision {origin['revision']}" if origin.get("revision") else ""
    lines.append(f"  from {origin.get('source')}{revision}, by tarjax {origin.get('tarjax')}")
    lines += [f"  {sha}  {name}" for name, sha in origin.get("files", {}).items()]
    lines += [f"  made: {sentence}" for sentence in origin.get("made", ())]
    lines += [f"  assumed: {sentence}" for sentence in run.layout.get("assumed", ())]
  return lines + table_of(run.kind, run.arrays)


def inspect_files(path: Path, given: Mapping[str, Any]) -> list[str]:
  source = open_source(path)
  found = recognise(source, given)
  return of_source(source, found, plan_import(found.table, source.tensors))


def of_source(source: Source, found: Found, plan: Plan) -> list[str]:
  files = ", ".join(f"{file.name} {file.stat().st_size:,} bytes" for file in source.digests)
  lines = [f"{source.path}: {found.kind}, {len(source.tensors)} tensors in {files}"]
  lines += [f"  assumed: {sentence}" for sentence in found.layout.get("assumed", ())]
  return lines + table_of(found.kind, plan.arrays)


def inspect_sana(folder: Path) -> list[str]:
  """The two runs of an imported SANA folder, and what came beside them."""
  origin = read_provenance(folder)
  lines = [f"{folder}: a SANA of {', '.join(PARTS)}, from {origin.get('source')}"]
  lines += [f"  {sha}  {name}" for name, sha in origin.get("files", {}).items()]
  for name in PARTS:
    lines += ["", f"{name}:", *inspect_run(open_run(str(folder / name)))]
  return lines


def inspect_pipeline(folder: Path) -> list[str]:
  """A SANA folder of diffusers."""
  pipeline = open_pipeline(folder)
  lines = [f"{folder}: a SANA folder of {', '.join(PARTS)}"]
  if pipeline.negative:
    shape, dtype = list(pipeline.negative.shape), pipeline.negative.dtype
    lines.append(f"  {NEGATIVE}: {shape} {dtype}")
  lines += [f"  assumed: {sentence}" for sentence in pipeline.said]
  for name, part in pipeline.parts.items():
    lines += ["", f"{name}:", *of_source(*part)]
  return lines


def table_of(kind: str, arrays: Mapping[tuple[str, str], Array]) -> list[str]:
  """Parameters and dtypes of the network's parts, their sums, and what lies beside the network."""
  parts = load_kind(kind).PARTS
  inside: dict[str, list[Array]] = {}
  beside: dict[str, list[Array]] = {}
  trees: dict[str, list[Array]] = {}
  for (tree, name), array in arrays.items():
    if label := label_of(name, BESIDE):
      beside.setdefault(label, []).append(array)
    else:
      inside.setdefault(label_of(name, parts) or OTHER, []).append(array)
      trees.setdefault(tree, []).append(array)
  order = [label for label, _ in parts] + [OTHER]
  lines = [line(label, inside[label]) for label in order if label in inside]
  lines.append(line("total", [a for group in inside.values() for a in group]))
  lines += [line(f"of which {t}", trees[t]) for t in sorted(trees.keys() - {"params"})]
  return lines + [line(f"beside it: {label}", group) for label, group in beside.items()]


def label_of(name: str, parts: Sequence[tuple[str, str]]) -> str | None:
  return next((label for label, pattern in parts if re.fullmatch(pattern, name)), None)


def line(label: str, arrays: list[Array]) -> str:
  count = sum(math.prod(a.shape) for a in arrays)
  dtypes = ", ".join(sorted({str(a.dtype) for a in arrays}))
  return f"  {label:<42}{count:>16,}  {total(arrays) / 1e9:8.3f} GB  {dtypes}"
