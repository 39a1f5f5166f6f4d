"""Says whether a stage fits on a TPU slice and how fast it will be, before one is rented:

  python -m tarjax.plan --config=configs/mllm.py:7b_pretrain --topology=v5p:4x4x4
      [--slices=N] [--json] [--every-scale] [--sweep] [--config.key=value ...]

Compiles the training step ahead of time for the real chips, on any CPU, and reads what the
compiler made. Needs libtpu: pip install -r requirements-tpu.txt. A stage with several pool scales
is planned at the first one, its longest; --every-scale plans all and takes the mean. --sweep tries
meshes, remat policies and batch sizes around the config, and prints the best.

The figures are the compiler's, never a chip's. A product takes its estimated cycles, which are
calibrated; other work takes its bytes over the memory's rate, because the compiler's estimate of it
can be 20 times too high ("at most" adds it up as estimated); attention's kernels take the cycles
of their schedules; collectives that wait for their result count in full.

Exit codes: 0 it fits, 1 it does not, 2 a mistake in the command or config.
"""

import importlib.util
import json
import os
import re
import sys
import time
from typing import Any

from tarjax.config import UserError, parse

FLAGS = ("topology", "slices", "json", "every-scale", "sweep")
TOPOLOGIES = {
  "v5e": ["2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"],
  "v5p": ["2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"],
  "v6e": ["2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"],
}  # the usual ones; libtpu knows more


def main(argv: list[str]) -> int:
  """The verb."""
  if {"--help", "-h"} & set(argv):
    print(__doc__)
    return 0
  try:
    flags, rest = split_flags(argv)
    config, _ = parse([*rest, "--workdir=plan"])
    quiet_libtpu()
    topology, devices = describe(flags["topology"], flags["slices"])
    if flags["sweep"]:
      from tarjax import chips
      from tarjax.sweep import sweep

      config = chips.settled(config, devices)  # so that a trial's values are not set again
      return sweep(config, lambda trial: plan(trial, topology, devices), flags["json"])
    result = plan(config, topology, devices, flags["every-scale"])
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  print(json.dumps(result, indent=2) if flags["json"] else told_in_words(result))
  return 0 if result["fits"] else 1


def split_flags(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
  """The verb's own flags, and what is left for the config.

  Raises:
    UserError: no topology, a number of slices that is none, a flag with a wrong value.
  """
  values: dict[str, Any] = {name: False for name in FLAGS} | {"topology": "", "slices": "1"}
  rest, argv = [], list(argv)
  while argv:
    arg = argv.pop(0)
    found = re.match(rf"--?({'|'.join(FLAGS)})(?:=(.*))?$", arg)
    if not found:
      rest.append(arg)
    elif found[1] in ("topology", "slices"):
      values[found[1]] = found[2] if found[2] is not None else (argv.pop(0) if argv else "")
    elif found[2] is not None:
      raise UserError(f"--{found[1]} takes no value, not {found[2]!r}")
    else:
      values[found[1]] = True
  if not values["topology"]:
    raise UserError(f"give --topology=CHIP:SHAPE, for example v5p:4x4x4; {known()}")
  if not values["slices"].isdigit() or int(values["slices"]) < 1:
    raise UserError(f"--slices={values['slices']} is not a number of slices")
  return values | {"slices": int(values["slices"])}, rest


def known() -> str:
  return "usual ones are " + "; ".join(f"{c}: {', '.join(s)}" for c, s in TOPOLOGIES.items())


def quiet_libtpu() -> None:
  """Compiling needs no TPU: nothing is asked of the machine, and warnings about that are off."""
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
  os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")


def describe(topology: str, slices: int) -> tuple[str, list[Any]]:
  """The name, and descriptions of the chips, of which none has to be here.

  Raises:
    UserError: an unknown topology, or libtpu is not installed.
  """
  import jax
  from jax.experimental import topologies

  chip, _, shape = topology.partition(":")
  if chip not in TOPOLOGIES or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape):
    raise UserError(f"unknown topology {topology!r}; {known()}")
  if importlib.util.find_spec("libtpu") is None:
    raise UserError("plan needs libtpu: pip install -r requirements-tpu.txt")
  jax.config.update("jax_platforms", "cpu")
  more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if all(n == "1" for n in shape.split("x")):
    more["chips_per_host_bounds"] = (1, 1, 1)
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **more)
  except Exception as e:
    reason = str(e).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
    raise UserError(f"unknown topology {topology!r} ({reason}); {known()}") from e
  return topology, list(found.devices)


def plan(config, topology: str, devices: list[Any], every_scale: bool = False) -> dict[str, Any]:
  """What the issue of planning asks: a dict of plain values, see `told_in_words`.

  Raises:
    UserError: a mesh or batch that does not fit the topology, or a mistake in the config.
  """
  from tarjax import costs
  from tarjax.stage import make_stage

  stage = make_stage(config, devices)
  shares = stage.shares if every_scale else {next(iter(stage.shares)): 1.0}
  out: list[tuple[float, dict[str, Any]]] = []
  for static, share in shares.items():
    began = time.time()
    made = compile_step(stage, dict(static))
    if isinstance(made, str):
      needed = costs.needed(made)
      return sizes(stage, needed) | {"fits": False, "topology": topology, "reason": made}
    step = costs.read_step(made, list(stage.mesh.devices.flat), topology)
    step["compile_seconds"] = round(time.time() - began, 1)
    step["flops"]["model"] = stage.model_flops(dict(static)) / len(devices)
    out.append((share, step))
  parts = mean([step for _, step in out], [share for share, _ in out])
  return sizes(stage, parts.pop("memory")) | verdict(topology, devices, parts, stage)


def verdict(topology, devices, parts, stage) -> dict[str, Any]:
  """The totals of a step's parts."""
  from tarjax import chips

  chip, seconds = chips.CHIPS[topology.partition(":")[0]], parts["step_seconds"]
  rate = chip.peak * seconds
  unit, count = stage.throughput()
  hours = stage.config.steps * seconds / 3600
  result = {
    "fits": True,
    "topology": topology,
    "chips": len(devices),
    **parts,
    "mfu": parts["flops"]["model"] / rate,
    f"{unit}_per_second": count / seconds,
    "hours": hours,
    "chip_hours": hours * len(devices),
    "steps": stage.config.steps,
  }
  if unit == "tokens":  # what 6 x parameters x tokens gives, with the table that is only looked up
    result["mfu_6nd"] = 6 * stage.parameters * count / len(devices) / rate
  return result


def mean(steps: list[Any], weights: list[float]) -> Any:
  """Weighted mean of equal trees of numbers; other leaves are the first's."""
  if isinstance(steps[0], dict):
    keys = dict.fromkeys(k for step in steps for k in step)
    return {k: mean([s.get(k, 0.0) for s in steps], weights) for k in keys}
  if isinstance(steps[0], (int, float)) and not isinstance(steps[0], bool):
    return sum(x * w for x, w in zip(steps, weights, strict=True)) / sum(weights)
  return steps[0]


def compile_step(stage, static: dict[str, Any]) -> Any:
  """The compiled step, or the compiler's words when it does not fit the memory."""
  import jax
  import jax.numpy as jnp

  from tarjax import sharding, state
  from tarjax.stage import a_key

  everywhere = sharding.replicated(stage.mesh)

  def abstract(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

  begun = state.TrainState(abstract((), jnp.int32), stage.layout.params, stage.layout.opt)
  key = abstract(a_key().shape, a_key().dtype)
  with jax.set_mesh(stage.mesh):
    step, _ = stage.programs()(True, static)
    traced = step.trace(begun, stage.layout.frozen, stage.batch(), key)
    lowered = traced.lower(lowering_platforms=("tpu",))
    try:
      return lowered.compile()
    except jax.errors.JaxRuntimeError as e:
      if "RESOURCE_EXHAUSTED" not in str(e):
        raise UserError(f"the compiler refuses this step: {str(e).splitlines()[0]}") from e
      return str(e)


def sizes(stage, memory: dict[str, float]) -> dict[str, Any]:
  """Bytes on a chip: what the run keeps, and with `memory` what a step needs besides."""
  import jax
  import numpy as np

  def held(tree) -> float:
    return float(
      sum(
        np.prod(x.sharding.shard_shape(x.shape), dtype=np.float64) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
      )
    )

  kept = {name: held(getattr(stage.layout, name)) for name in ("params", "opt", "frozen")}
  names = {"params": "parameters", "opt": "optimizer", "frozen": "frozen"}
  kept = {names[name]: size for name, size in kept.items()} | {"batch": held(stage.batch())}
  total = max(memory["total"], sum(kept.values()))
  kept["activations"] = total - sum(kept.values())
  mesh = {k: int(v) for k, v in stage.mesh.shape.items()}
  return {"mesh": mesh, "bytes_per_chip": kept | {"total": total, "limit": memory["limit"]}}


def told_in_words(result: dict[str, Any]) -> str:
  """A page for a person."""
  held = {k: f"{v / 2**30:.2f}" for k, v in result["bytes_per_chip"].items()}
  mesh = " x ".join(f"{k} {v}" for k, v in result["mesh"].items())
  lines = [
    f"{result['topology']}, mesh {mesh}",
    f"{'fits' if result['fits'] else 'does not fit'}: {held['total']} of {held['limit']} GiB per "
    f"chip: parameters {held['parameters']}, optimizer {held['optimizer']}, frozen "
    f"{held['frozen']}, batch {held['batch']}, activations {held['activations']}",
  ]
  if not result["fits"]:
    return "\n".join(lines)
  flops, parts = result["flops"], result["seconds"]
  lines += [
    f"a step: {result['step_seconds']:.4f} s estimated, at most {result['at_most_seconds']:.4f}",
    *(f"  {name:<22} {value:.4f} s" for name, value in parts.items()),
    f"per chip: {flops['done'] / 1e12:.1f} TFLOP done in products and kernels, of which the model "
    f"needs {flops['model'] / 1e12:.1f}; {result['bytes_moved'] / 1e9:.1f} GB to and from memory",
    "collectives per chip:",
  ]
  for kind, c in result["collectives"].items():
    lines.append(
      f"  {kind:<22} {c['ici_bytes'] / 1e9:7.2f} GB over ICI, {c['dcn_bytes'] / 1e9:.3f} over DCN, "
      f"{c['exposed_seconds']:.4f} s exposed"
    )
  unit = "tokens" if "tokens_per_second" in result else "images"
  also = f" ({result['mfu_6nd']:.1%} by 6 N D)" if "mfu_6nd" in result else ""
  lines += [
    f"MFU {result['mfu']:.1%}{also}, {result[f'{unit}_per_second']:,.0f} {unit}/s",
    f"{result['steps']:,} steps: {result['hours']:,.1f} h, {result['chip_hours']:,.0f} chip-hours",
    f"compiled in {result['compile_seconds']:.0f} s",
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
