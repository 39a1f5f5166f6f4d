"""What a training step costs: operations from its trace, seconds and bytes from the compiled text.

`plan` prints it. A trace says what has to be multiplied; the compiled program says what will be.
"""

import math
import re
from typing import Any

import numpy as np

from tarjax import chips, hlo

MI, KI = 2**20, 2**10


def traced_flops(jaxpr: Any, scope: str = "") -> float:
  """Operations of all products, loops multiplied out; those under the scope "causal" count half."""
  total = 0.0
  for eqn in jaxpr.eqns:
    name = f"{scope}/{eqn.source_info.name_stack}"
    half = 0.5 if "causal" in name else 1.0
    if eqn.primitive.name == "dot_general":
      (_, contracted), (_, shared) = eqn.params["dimension_numbers"]
      a, b = (v.aval.shape for v in eqn.invars)
      kept = [n for i, n in enumerate(b) if i not in (*contracted, *shared)]
      total += 2.0 * half * math.prod(a) * math.prod(kept)
    elif eqn.primitive.name == "conv_general_dilated":
      names, kernel = eqn.params["dimension_numbers"], eqn.invars[1].aval.shape
      taps = math.prod(kernel) / kernel[names.rhs_spec[0]] / math.prod(eqn.params["lhs_dilation"])
      total += 2.0 * eqn.outvars[0].aval.size * taps
    else:
      times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
      inner = [traced_flops(j, name) for j in jaxprs_in(eqn.params)]
      branches = eqn.primitive.name == "cond"
      total += times * (max(inner) if branches and inner else sum(inner))
  return total


def jaxprs_in(params: dict[str, Any]) -> list[Any]:
  """The jaxprs among an equation's parameters, unwrapped; a derivative rule is not run."""
  values = [v for k, v in params.items() if "jvp" not in k and "fwd" not in k and "bwd" not in k]
  flat = [x for v in values for x in (v if isinstance(v, (tuple, list)) else [v])]
  return [getattr(x, "jaxpr", x) for x in flat if hasattr(getattr(x, "jaxpr", x), "eqns")]


def needed(message: str) -> dict[str, float]:
  """The compiler's refusal "... 98.38G exceeds 95.74G" -> bytes."""
  scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  pairs = re.findall(r"([\d.]+)([KMGT]) (?:of|exceeds) ([\d.]+)([KMGT])", message)
  used, unit, limit, unit2 = pairs[0] if pairs else ("0", "G", "0", "G")
  return {"total": float(used) * scale[unit], "limit": float(limit) * scale[unit2]}


def read_step(compiled: Any, devices: list[Any], topology: str) -> dict[str, Any]:
  """Seconds, bytes and collectives of one step on one chip.

  Args:
    compiled: the result of `.compile()`.
    devices: the chips' descriptions in the order of the mesh.
    topology: such as "v5p:4x4x4".
  """
  name = topology.partition(":")[0]
  chip, program = chips.CHIPS[name], hlo.Program(compiled.as_text())
  products, other, at_most = 0.0, 0.0, 0.0
  steps = program.steps()
  for step in steps:
    cycles = step.cycles / chip.clock
    if step.flops or step.calibrated:
      products += cycles
    else:
      other += step.bytes / chip.read
      at_most += max(cycles - step.bytes / chip.read, 0.0)
  attention, kernel_flops = kernels(program, chip)
  collectives = traffic(program, devices, name)
  exposed = sum(c["exposed_seconds"] for c in collectives.values())
  hidden = sum(c["hidden_seconds"] for c in collectives.values())
  beside = products + other + attention
  seconds = {
    "products": products,
    "attention kernels": attention,
    "other work": other,
    "waiting for collectives": exposed + max(hidden - beside, 0.0),
  }
  total = sum(seconds.values())
  return {
    "step_seconds": total,
    "at_most_seconds": total + at_most,
    "seconds": seconds,
    "flops": {"done": sum(s.flops for s in steps) + kernel_flops},
    "bytes_moved": sum(s.bytes for s in steps),
    "collectives": collectives,
    "memory": memory(compiled, chip),
  }


def memory(compiled: Any, chip: chips.Chip) -> dict[str, float]:
  """What a program that compiled needs of the chip's memory.

  The compiler's parts do not share memory in its own sum, so it may exceed what it accepted; then
  its peak is the better figure.
  """
  stats = compiled.memory_analysis()
  kept = stats.argument_size_in_bytes
  kept += stats.output_size_in_bytes - stats.alias_size_in_bytes
  peak = getattr(stats, "peak_memory_in_bytes", 0)
  total = max(kept + stats.temp_size_in_bytes, peak)
  if total > chip.memory:
    total = max(peak, kept)
  return {"total": float(total), "limit": chip.memory}


def kernels(program: hlo.Program, chip: chips.Chip) -> tuple[float, float]:
  """Seconds and operations of the splash kernels."""
  seconds = flops = 0.0
  for i, operands, times in program.kernels(lambda i: "splash" in i.name):
    (b, h, l, d), (*_, keys, _) = queries_and_keys(operands)
    area = l * keys
    if "splash_causal" in i.op_name:
      from tarjax.models.attention import blocks

      count = l // blocks(l)[1]
      area = area * (count + 1) / (2 * count)  # blocks on the diagonal are computed whole
    forward = "_fwd" in i.name
    per_area, per_row = chip.forward if forward else chip.backward
    seconds += times * b * h * (per_area * area / MI + per_row * l / KI) * 1e-6
    flops += times * b * h * area * d * (4 if forward else 10)
  return seconds, flops


def queries_and_keys(operands: list[tuple[int, ...]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """The shapes [b h l d] among those of a splash kernel, where a batch of one has no b."""
  found = [
    (q, k)
    for q, k, v in zip(operands, operands[1:], operands[2:], strict=False)
    if k == v and len(q) == len(k) > 2 and q[-1] == k[-1]
  ]
  q, k = max(found, key=lambda pair: math.prod(pair[0]))  # others tell which blocks are masked
  one = (1,) * (4 - len(q))
  return one + q, one + k


def traffic(program: hlo.Program, devices: list[Any], chip_name: str) -> dict[str, Any]:
  """Bytes and seconds of collectives by kind, inside a slice (ICI) and between slices (DCN)."""
  from tarjax.sharding import slice_of

  chip = chips.CHIPS[chip_name]
  at = np.array([d.coords for d in devices])
  size = (at.max(0) + 1).tolist()
  of_slice = [slice_of(d) for d in devices]
  out: dict[str, Any] = {}
  for c in program.collectives(len(devices)):
    group = c.groups[0]
    crossed = {s: [n for n in group if of_slice[n] == s] for s in {of_slice[n] for n in group}}
    members = max(crossed.values(), key=len)
    ici, dcn = c.bytes, 0.0
    if c.kind == "send":
      ici, dcn = 0.0, c.bytes
    elif len(crossed) > 1:  # reduced inside a slice first, so that only a part crosses
      ici, dcn = c.bytes * (len(members) > 1), c.bytes / len(members)
    spanned = chips.axes_spanned([at[n].tolist() for n in members], size, chip_name)
    seconds = ici / (chip.link * spanned) + dcn / chip.dcn
    entry = out.setdefault(
      c.kind, dict(ici_bytes=0.0, dcn_bytes=0.0, exposed_seconds=0.0, hidden_seconds=0.0)
    )
    entry["ici_bytes"] += ici
    entry["dcn_bytes"] += dcn
    entry["hidden_seconds" if c.hidden else "exposed_seconds"] += seconds
  return out
