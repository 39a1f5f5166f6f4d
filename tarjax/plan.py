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

import collections
import dataclasses
import importlib.util
import json
import os
import re
import sys
import time
from typing import Any

from tarjax.config import UserError, parse, told

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
      from tarjax.sweep import sweep

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

  programs = compiled_steps(config, devices)
  shares = programs.shares if every_scale else {next(iter(programs.shares)): 1.0}
  out: list[tuple[float, dict[str, Any]]] = []
  for static, share in shares.items():
    began = time.time()
    made = programs.compile(dict(static))
    if isinstance(made, str):
      needed = costs.needed(made)
      return programs.sizes(needed) | {"fits": False, "topology": topology, "reason": made}
    step = costs.read_step(made, list(programs.mesh.devices.flat), topology)
    step["compile_seconds"] = round(time.time() - began, 1)
    step["flops"]["model"] = programs.model_flops(dict(static)) / len(devices)
    out.append((share, step))
  parts = mean([step for _, step in out], [share for share, _ in out])
  return programs.sizes(parts.pop("memory")) | verdict(config, topology, devices, parts, programs)


def verdict(config, topology, devices, parts, programs) -> dict[str, Any]:
  """The totals of a step's parts."""
  from tarjax import chips

  chip, seconds = chips.CHIPS[topology.partition(":")[0]], parts["step_seconds"]
  rate = chip.peak * seconds
  unit, count = programs.throughput()
  hours = config.steps * seconds / 3600
  result = {
    "fits": True,
    "topology": topology,
    "chips": len(devices),
    **parts,
    "mfu": parts["flops"]["model"] / rate,
    f"{unit}_per_second": count / seconds,
    "hours": hours,
    "chip_hours": hours * len(devices),
    "steps": config.steps,
  }
  if unit == "tokens":  # what 6 x parameters x tokens gives, with the table that is only looked up
    result["mfu_6nd"] = 6 * programs.parameters * count / len(devices) / rate
  return result


def mean(steps: list[Any], weights: list[float]) -> Any:
  """Weighted mean of equal trees of numbers; other leaves are the first's."""
  if isinstance(steps[0], dict):
    keys = dict.fromkeys(k for step in steps for k in step)
    return {k: mean([s.get(k, 0.0) for s in steps], weights) for k in keys}
  if isinstance(steps[0], (int, float)) and not isinstance(steps[0], bool):
    return sum(x * w for x, w in zip(steps, weights, strict=True)) / sum(weights)
  return steps[0]


def compiled_steps(config, devices):
  """A `Steps` for the config on these chips."""
  from tarjax import optim, sharding, state, tasks

  with told():
    mesh = sharding.make_mesh(config.mesh.to_dict(), devices)
    sharding.check_batch(config.batch, config.accumulate, mesh)
  with told(TypeError):
    task = tasks.make_task(config)
  optimizer = optim.make_optimizer(config.optim, config.steps)
  schedule = optim.make_schedule(config.optim, config.steps)
  with told():
    layout = state.make_layout(task, optimizer, mesh)
  return Steps(config, task, optimizer, schedule, layout, mesh)


@dataclasses.dataclass
class Steps:
  """The training steps of a config as the loop would compile them, for chips that are not here."""

  config: Any
  task: Any
  optimizer: Any
  schedule: Any
  layout: Any
  mesh: Any

  @property
  def shares(self) -> dict[tuple, float]:
    """How often each value of the static arguments is drawn; the longest sequence first."""
    drawn = collections.Counter(tuple(sorted(self.task.static(s).items())) for s in range(1000))
    return {static: drawn[static] / 1000 for static in sorted(drawn)}

  @property
  def parameters(self) -> int:
    import jax

    return sum(x.size for x in jax.tree.leaves(self.layout.params))

  def compile(self, static: dict[str, Any]) -> Any:
    """The compiled step, or the compiler's words when it does not fit the memory."""
    import jax
    import jax.numpy as jnp

    from tarjax import chips, sharding, state

    everywhere = sharding.replicated(self.mesh)
    options = chips.compiler_options(self.config, self.mesh.devices.flat)

    def abstract(shape, dtype):
      return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    key = jax.eval_shape(lambda: jax.random.key(0))
    begun = state.TrainState(abstract((), jnp.int32), self.layout.params, self.layout.opt)
    arguments = (begun, self.layout.frozen, self.batch(), abstract(key.shape, key.dtype))
    with jax.set_mesh(self.mesh):
      programs = state.Programs(
        self.task,
        self.optimizer,
        self.schedule,
        self.layout,
        self.mesh,
        self.config.accumulate,
        options,
      )
      step, _ = programs(True, static)
      lowered = step.trace(*arguments).lower(lowering_platforms=("tpu",))
      try:
        return lowered.compile()
      except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
          raise UserError(f"the compiler refuses this step: {str(e).splitlines()[0]}") from e
        return str(e)

  def batch(self) -> dict[str, Any]:
    """ShapeDtypeStructs of a global batch, by `config.data.format`; see data.pipeline."""
    import jax
    import numpy as np

    from tarjax import sharding

    place, b, data = sharding.batch_sharding(self.mesh), self.config.batch, self.config.data

    def of(dtype, *shape):
      return jax.ShapeDtypeStruct((b, *shape), dtype, sharding=place)

    codes = {}
    if data.format in ("codes", "latents"):
      codes = {f"codes{s}": of(np.int32, self.task.ta_tok.cfg.tokens(s)) for s in (1, 2, 3)}
    match data.format:
      case "packed":
        names = ("tokens", "labels", "segments", "positions")
        return {name: of(np.int32, data.length) for name in names}
      case "codes":
        return codes | {"vq": of(np.int32, self.task.net.length)}
      case "latents":
        net = self.task.net
        return codes | {"latent": of(np.float32, net.size, net.size, net.channels)}
      case "pairs":
        text = of(np.int32, data.text_length)
        return {"image": of(np.uint8, data.size, data.size, 3), "text": text}
      case "images":
        return {"image": of(np.uint8, data.size, data.size, 3)}
      case other:
        raise UserError(f"config.data.format={other!r} cannot be planned")

  def throughput(self) -> tuple[str, int]:
    """What a step reads: ("tokens" or "images", how many)."""
    packed = self.config.data.format == "packed"
    return (
      ("tokens", self.config.batch * self.config.data.length)
      if packed
      else (
        "images",
        self.config.batch,
      )
    )

  def model_flops(self, static: dict[str, Any]) -> float:
    """Products of one global step, none of them computed twice, causal attention halved."""
    import jax

    from tarjax import costs, tasks

    config = self.config.copy_and_resolve_references()
    with config.unlocked():
      config.model.update({"remat": "none"} if "remat" in config.model else {})
    loss = tasks.make_task(config).loss

    def gradient(params, frozen, batch, rng):
      return jax.value_and_grad(
        lambda p: loss(p, frozen, batch, rng, train=True, **static), has_aux=True
      )(params)

    plain = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
      (self.layout.params, self.layout.frozen, self.batch()),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    return costs.traced_flops(jax.make_jaxpr(gradient)(*plain, key).jaxpr)

  def sizes(self, memory: dict[str, float]) -> dict[str, Any]:
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

    kept = {name: held(getattr(self.layout, name)) for name in ("params", "opt", "frozen")}
    names = {"params": "parameters", "opt": "optimizer", "frozen": "frozen"}
    kept = {names[name]: size for name, size in kept.items()} | {"batch": held(self.batch())}
    total = max(memory["total"], sum(kept.values()))
    kept["activations"] = total - sum(kept.values())
    mesh = {k: int(v) for k, v in self.mesh.shape.items()}
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
