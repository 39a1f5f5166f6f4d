"""Times a stage's training step on the devices at hand, on made-up data:

  python -m tarjax.bench --config=configs/mllm.py:1p5b_pretrain --config.batch=8
      [--against=torch] [--torch-parts=N] [--rounds=N] [--json] [--config.key=value ...]

The step is the one that train runs, with random weights and rows that are full: the same task,
optimizer, mesh, remat and donation. A mesh that does not fit the devices is replaced by fsdp over
all of them. A stage with several pool scales is timed at the first, its longest. Times are medians
over rounds of about a second, in which steps follow each other as in training; the fastest and the
slowest round stand beside them.

--against=torch takes turns with the same network in PyTorch and transformers, on the same weights
and data: for mllm the training step, for ta_tok encoding to codes at scale 1. On a GPU PyTorch has
torch.compile and half of the memory (XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise);
--torch-parts=N makes it take the batch in N parts, whose gradients it adds.

Exit codes: 0 done, 1 it does not fit the memory, 2 a mistake in the command or config.
"""

import json
import os
import re
import statistics
import sys
from typing import Any

from tarjax.config import UserError, parse

FLAGS = {"against": "", "torch-parts": "1", "rounds": "7", "json": ""}


def main(argv: list[str]) -> int:
  """The verb."""
  if {"--help", "-h"} & set(argv):
    print(__doc__)
    return 0
  try:
    flags, rest = split_flags(argv)
    config, _ = parse([*rest, "--workdir=bench"])
    result = bench(config, flags)
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  except Exception as e:
    said = str(e)
    if "RESOURCE_EXHAUSTED" not in said and type(e).__name__ != "OutOfMemoryError":
      raise
    print(f"it does not fit the memory: {said.splitlines()[0]}", file=sys.stderr)
    return 1
  print(json.dumps(result, indent=2) if flags["json"] else told_in_words(result))
  return 0


def split_flags(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
  """The verb's own flags as --name=value, and what is left for the config.

  Raises:
    UserError: a value that is none.
  """
  values: dict[str, Any] = dict(FLAGS)
  rest = []
  for arg in argv:
    found = re.match(rf"--?({'|'.join(FLAGS)})(?:=(.*))?$", arg)
    if not found:
      rest.append(arg)
    elif (found[1] == "json") != (found[2] is None):
      raise UserError(f"--{found[1]} takes {'no' if found[1] == 'json' else 'a'} value")
    else:
      values[found[1]] = found[2] or "yes"
  if values["against"] not in ("", "torch"):
    raise UserError(f"--against={values['against']}: there is only torch")
  for name in ("torch-parts", "rounds"):
    if not values[name].isdigit() or int(values[name]) < 1:
      raise UserError(f"--{name}={values[name]} is not a number from 1 on")
    values[name] = int(values[name])
  return values, rest


def bench(config, flags: dict[str, Any]) -> dict[str, Any]:
  """What the verb prints, as plain values; see `told_in_words`.

  Raises:
    UserError: a mistake in the config, or nothing to compare with.
  """
  if flags["against"]:
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".5")
  import jax

  from tarjax import chips, sharding, timing
  from tarjax.stage import make_stage

  config = chips.settled(config, jax.devices())
  try:
    sharding.make_mesh(config.mesh.to_dict())
  except ValueError:
    config.mesh.update(slices=1, data=1, fsdp=-1, model=1)
  stage = make_stage(config)
  with jax.set_mesh(stage.mesh):
    sides = timing.sides(stage, flags["against"], flags["torch-parts"])
    seconds = timing.in_turn(sides, flags["rounds"])
  unit, count = stage.throughput()
  flops, device = timing.flops(stage, flags["against"]), jax.devices()[0]
  peak = chips.peak_of(device.device_kind)
  result: dict[str, Any] = {
    "device": device.device_kind,
    "devices": stage.mesh.size,
    "mesh": {k: int(v) for k, v in stage.mesh.shape.items()},
    "batch": config.batch,
    "dtype": config.model.get("dtype", "float32"),
    "remat": config.model.get("remat", "none"),
  }
  for side, times in zip(sides, seconds, strict=True):
    median = statistics.median(times)
    rate = flops / median / stage.mesh.size
    result[side.name] = {
      "what": side.what,
      "seconds": median,
      "fastest": min(times),
      "slowest": max(times),
      f"{unit}_per_second": count / median,
      "tflops_per_device": rate / 1e12,
      "mfu": rate / peak if peak else None,
      "peak_bytes": side.peak(),
      "loss": side.loss,
    }
  if len(sides) == 2:
    ratios = [theirs / ours for ours, theirs in zip(*seconds, strict=True)]
    spread = {"slowest": min(ratios), "fastest": max(ratios)}
    result["ratio"] = {"median": statistics.median(ratios)} | spread
    if sides[0].codes is not None:
      result["equal_codes"] = float((sides[0].codes == sides[1].codes).mean())
  return result


def told_in_words(result: dict[str, Any]) -> str:
  """A few lines for a person."""
  mesh = " x ".join(f"{k} {v}" for k, v in result["mesh"].items())
  lines = [
    f"{result['devices']} x {result['device']}, mesh {mesh}, batch {result['batch']}, "
    f"{result['dtype']}, remat {result['remat']}"
  ]
  for name in ("tarjax", "torch"):
    if name not in result:
      continue
    side = result[name]
    unit = "tokens" if "tokens_per_second" in side else "images"
    share = "" if side["mfu"] is None else f", MFU {side['mfu']:.1%}"
    held = "" if side["peak_bytes"] is None else f", peak {side['peak_bytes'] / 2**30:.2f} GiB"
    lines += [
      f"{name}: {side['what']}",
      f"  {side['seconds']:.4f} s ({side['fastest']:.4f} to {side['slowest']:.4f}), "
      f"{side[f'{unit}_per_second']:,.1f} {unit}/s, {side['tflops_per_device']:.3g} TFLOP/s"
      f"{share}{held}" + ("" if side["loss"] is None else f", first loss {side['loss']:.5f}"),
    ]
  if "ratio" in result:
    ratio = result["ratio"]
    lines.append(
      f"tarjax is {ratio['median']:.2f} times as fast as torch "
      f"({ratio['slowest']:.2f} to {ratio['fastest']:.2f} over the rounds)"
    )
  if "equal_codes" in result:
    lines.append(f"{result['equal_codes']:.2%} of the codes are equal")
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
