r"""Compares tarjax with recorded runs of the PyTorch originals.

  python -m tarjax.parity tests/fixtures/vqvae.json tests/fixtures/*.safetensors

A record is NAME.safetensors (`sd.` weights under the original names, `in.` inputs, `out.` outputs)
with a manifest NAME.json; the weights may also be in NAME.pth, with a manifest NAME_pth.json. Every
output gets a line. A float output agrees when its largest error is within 1e-4 of the largest
magnitude; codes must be equal, but not where the two nearest are closer than 1e-4, and greedy words
up to the first near tie; uint8 pictures may differ by one level. Exit code 0: all agree, 1: some
output does not, 2: a record that cannot be used.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

Tensors = Mapping[str, np.ndarray]
LIMIT = 1e-4
# What follows from a choice of codes: not compared in images where a near tie fell differently.
AFTER_CODES = ("regularized_z", "bottleneck_out", "rec", "decode_from_indices", "quant")
AFTER_CODES += ("decode_code", "ar_tokens", "ar_logits", "image_float", "image")
AFTER_CODES += ("image_from_indices",)
AFTER_TOKENS = ("image_float", "image", "image_from_indices")


class RecordError(ValueError):
  """A record that cannot be used; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class Record:
  """A recorded run: names of tensors are without their prefix."""

  component: str
  config: dict[str, Any]
  manifest: dict[str, Any]  # "sd.x", "in.x", "out.x" -> [dtype, shape, meaning]
  sd: Tensors
  inputs: Tensors
  outputs: Tensors


@dataclasses.dataclass(frozen=True)
class Line:
  """The comparison of one output. `error` is the largest, `scale` the largest magnitude."""

  name: str
  shape: tuple[int, ...]
  error: float
  scale: float
  ok: bool
  note: str = ""

  def __str__(self):
    relative = self.error / self.scale if self.scale else self.error
    shape = "x".join(map(str, self.shape)) or "scalar"
    verdict = "ok" if self.ok else "MISS"
    text = f"{self.name:36} {shape:>14}  abs {self.error:.2e}  rel {relative:.2e}  {verdict}"
    return f"{text}  ({self.note})" if self.note else text


# --- one function per component -------------------------------------------------------------------


def run_siglip2(record: Record):
  from tarjax.convert.siglip2 import run_parity

  return run_parity(record.config, record.sd, record.inputs)


def run_ta_tok(record: Record):
  from tarjax.convert.ta_tok import run_parity

  return run_parity(record.config, record.sd, record.inputs)


def run_vqvae(record: Record):
  from tarjax.convert.vqvae import run_parity

  return run_parity(record.config, record.sd, record.inputs)


def run_ar_dtok(record: Record):
  from tarjax.convert.ar_dtok import run_parity

  return run_parity(record.config, record.sd, record.inputs, record.manifest)


def run_filter(record: Record):
  from tarjax.convert.ar_dtok import run_filter_parity

  return run_filter_parity(record.config, record.sd, record.inputs)


def run_qwen2(record: Record):
  from tarjax.convert.qwen2 import run_parity

  return run_parity(record.config, record.sd, record.inputs, record.manifest)


def run_diffusion(record: Record):
  from tarjax.convert import dc_ae, dif_dtok

  run = {"sana_transformer": dif_dtok.run_parity, "dc_ae": dc_ae.run_parity}
  run = run.get(record.component, dif_dtok.run_sampling_parity)
  return run(record.config, record.sd, record.inputs)


def run_came(record: Record):
  from tarjax.convert.came import run_parity

  return run_parity(record.config, record.inputs)


def run_end_to_end(record: Record):
  from tarjax.convert.end_to_end import run_parity

  return run_parity(record.config, record.sd, record.inputs)


COMPONENTS: dict[str, Callable[[Record], dict[str, np.ndarray]]] = {
  "siglip2_vision (fixed resolution)": run_siglip2,
  "siglip text tower and contrastive loss": run_siglip2,
  "siglip2_naflex_vision": run_siglip2,
  "ta_tok": run_ta_tok,
  "vqvae": run_vqvae,
  "ar_model": run_ar_dtok,
  "ar_model checkpoint file": run_ar_dtok,
  "sampling filter": run_filter,
  "end_to_end": run_end_to_end,
  "qwen2": run_qwen2,
  "sana_transformer": run_diffusion,
  "sana sampling loops": run_diffusion,
  "dc_ae": run_diffusion,
  "optimiser CAME": run_came,
}


# --- reading --------------------------------------------------------------------------------------


def read_record(path: Path) -> Record:
  """Any file of a record -> Record.

  Raises:
    RecordError: a missing or damaged file, an unknown component, tensors that are not as listed.
  """
  stem = path.with_name(path.stem + "_pth") if path.suffix == ".pth" else path.with_suffix("")
  names = stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".safetensors")
  for file in (path, *names):
    if not file.is_file():
      raise RecordError(f"{file}: there is no such file")
  try:
    manifest = json.loads(names[0].read_text())
    component, config = manifest["component"], manifest["config"]
    listed = {
      name: (dtype, tuple(shape)) for name, (dtype, shape, _) in manifest["tensors"].items()
    }
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise RecordError(f"{names[0]}: not a manifest with component, config and tensors ({e})") from e
  if component not in COMPONENTS:
    raise RecordError(f"{names[0]}: component {component!r} is none of {', '.join(COMPONENTS)}")
  try:
    tensors = load_file(names[1])
  except (SafetensorError, OSError) as e:
    raise RecordError(f"{names[1]}: not a safetensors file ({e})") from e
  found = {name: (str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()}
  for name in sorted(listed.keys() | found.keys()):
    if listed.get(name) != found.get(name):
      have, want = found.get(name, "missing"), listed.get(name, "not listed")
      raise RecordError(f"{names[1]}: {name} is {have}, and {want} in the manifest")
  groups = {"sd": {}, "in": {}, "out": {}}
  for name, tensor in tensors.items():
    prefix, _, rest = name.partition(".")
    groups.setdefault(prefix, {})[rest] = tensor
  sd = groups["sd"]
  if component == "ar_model checkpoint file":
    sd = read_pth(stem.with_name(str(config.get("file"))), config)
  return Record(component, config, manifest["tensors"], sd, groups["in"], groups["out"])


def read_pth(path: Path, config: Mapping[str, Any]) -> Tensors:
  """The weights of an AR de-tokenizer's .pth file.

  Raises:
    RecordError: no such file, or one of another kind.
  """
  from tarjax.convert.ar_dtok import read_checkpoint

  if not path.is_file():
    raise RecordError(f"{path}: there is no such file")
  try:
    return read_checkpoint(path, config.get("name_means"))[1]
  except Exception as e:  # unpickling damaged bytes can raise anything
    raise RecordError(f"{path}: not an AR de-tokenizer's checkpoint ({e})") from e


# --- comparing ------------------------------------------------------------------------------------


def compare(record: Record, found: Tensors) -> list[Line]:
  """One line per recorded output, in the order of the record."""
  return [compare_one(record, name, found) for name in sorted(record.outputs)]


def compare_one(record: Record, name: str, found: Tensors) -> Line:
  """The verdict on one output."""
  want = record.outputs[name]
  if name not in found:
    if name.endswith("margin"):
      return Line(name, want.shape, 0.0, 0.0, True, "tells near ties")
    return Line(name, want.shape, np.inf, 0.0, False, "tarjax does not compute it")
  got = np.asarray(found[name])
  if got.shape != want.shape:
    return Line(name, want.shape, np.inf, 0.0, False, f"shape {got.shape}")
  if record.component == "sampling filter":
    got, want = sort_ties(record.inputs["logits"], got), sort_ties(record.inputs["logits"], want)
  counted = np.broadcast_to(where_compared(record, name, found), want.shape)
  difference = np.abs(got.astype(np.float64) - want.astype(np.float64))[counted]
  if not difference.size:
    return Line(name, want.shape, 0.0, 0.0, True, "near ties only")
  error, scale = float(difference.max()), float(np.abs(want[counted].astype(np.float64)).max())
  if want.dtype == np.uint8:
    ok = error <= 1
  elif np.issubdtype(want.dtype, np.integer):
    ok = error == 0
  else:
    ok = error <= LIMIT * scale
  left_out = int(want.size - difference.size)
  note = f"{left_out} of {want.size} not compared" if left_out else ""
  return Line(name, want.shape, error, scale, bool(ok), note)


def where_compared(record: Record, name: str, found: Tensors) -> np.ndarray:
  """bool, broadcastable to the output: False at padding, near ties, and what follows from them."""
  want, outputs = record.outputs[name], record.outputs
  prefix, _, last = name.rpartition(".")
  prefix += "." if prefix else ""
  seen = np.ones((1,) * want.ndim, bool)
  mask = padding_mask(record, name)
  if mask is not None:
    seen = seen & mask.reshape(mask.shape + (1,) * (want.ndim - 2)).astype(bool)
  if last == "indices" and prefix + "margin" in outputs:
    seen = seen & (outputs[prefix + "margin"] > LIMIT)
  if last in AFTER_CODES and prefix + "indices" in outputs:
    same = rows_equal(outputs[prefix + "indices"], found.get(prefix + "indices"), len(want))
    seen = seen & same.reshape(-1, *(1,) * (want.ndim - 1))
  tokens = prefix + ("ar_tokens" if prefix + "ar_tokens" in outputs else "tokens")
  if tokens in outputs and last in ("tokens", "ar_tokens", "logits", "ar_logits", "scores"):
    first = first_near_tie(record, prefix)[:, None]  # [b 1]
    step = np.arange(outputs[tokens].shape[1])
    kept = step < first if "tokens" in last else step <= first  # [b t]
    seen = seen & kept.reshape(kept.shape + (1,) * (want.ndim - 2))
  if last in AFTER_TOKENS and tokens in outputs:
    same = rows_equal(outputs[tokens], found.get(tokens), len(want))
    tie = first_near_tie(record, prefix) < outputs[tokens].shape[1]
    seen = seen & (same | ~tie).reshape(-1, *(1,) * (want.ndim - 1))
  return seen


def padding_mask(record: Record, name: str) -> np.ndarray | None:
  """The input [b l] that is 1 where an output means something; None if it does everywhere."""
  if record.component == "qwen2" and record.outputs[name].ndim == 3:
    sides = {"right": "mask_right", "embeds": "mask_right", "left": "mask_left"}
    return record.inputs.get(sides.get(name.split(".")[0], ""))
  if record.component == "siglip2_naflex_vision":
    if name == "last_hidden_state" or name.startswith("hidden_states."):
      return record.inputs.get("attention_mask")
  return None


def rows_equal(want: np.ndarray, got: np.ndarray | None, rows: int) -> np.ndarray:
  """bool[rows]: images (leading axis, possibly flattened) all of whose codes are as recorded."""
  if got is None or got.shape != want.shape or want.size % rows:
    return np.ones(rows, bool)
  return (np.asarray(got) == want).reshape(rows, -1).all(1)


def first_near_tie(record: Record, prefix: str) -> np.ndarray:
  """int[b]: the first greedy step whose two best logits are closer than 1e-4, or their number."""
  names = (prefix + "logits", prefix + "ar_logits", prefix + "scores")
  logits = next(record.outputs[n] for n in names if n in record.outputs)  # [b t v]
  best = np.partition(logits, -2, -1)[..., -2:]
  close = best[..., 1] - best[..., 0] <= LIMIT
  return np.where(close.any(1), close.argmax(1), close.shape[1])


def sort_ties(logits: np.ndarray, chances: np.ndarray) -> np.ndarray:
  """Sorts the rows float[b v] of chances whose logits hold a tie: their order is not defined."""
  rows = [len(np.unique(row)) < len(row) for row in logits]
  return np.where(np.array(rows)[:, None], np.sort(chances, -1), chances)


# --- the verb -------------------------------------------------------------------------------------


def check(path: str | Path) -> list[Line]:
  """Runs one record at full matmul precision.

  Raises:
    RecordError: a record that cannot be used.
  """
  record = read_record(Path(path))
  with jax.default_matmul_precision("highest"):
    try:
      found = COMPONENTS[record.component](record)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
      text = " ".join(str(e).split())
      raise RecordError(
        f"{path}: its config and tensors do not make a {record.component} "
        f"({type(e).__name__}: {text})"
      ) from e
  return compare(record, found)


def main(argv: list[str] | None = None) -> int:
  """Prints the comparison of every file; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m tarjax.parity", description="Compare with recorded runs of the originals."
  )
  parser.add_argument("files", nargs="+", metavar="FILE", help=".json, .safetensors or .pth")
  misses = 0
  for file in parser.parse_args(argv).files:
    try:
      lines = check(file)
    except RecordError as e:
      print(f"parity: {e}", file=sys.stderr)
      return 2
    print(file)
    for line in lines:
      print(f"  {line}")
    misses += sum(not line.ok for line in lines)
  print("all outputs agree" if not misses else f"{misses} outputs do not agree")
  return 1 if misses else 0


if __name__ == "__main__":
  sys.exit(main())
