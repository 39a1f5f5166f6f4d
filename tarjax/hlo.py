"""Reads the text of a compiled TPU program: what it multiplies, moves and sends, and for how long.

XLA's own cost analysis counts a loop's body once, so programs over scanned layers are read here:
from the entry, every loop body times its trips. All figures are for one chip. Nothing here knows a
chip or a network; `plan` does.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator

import numpy as np

WIDTH = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16, "token": 0}
FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
  "replica-id", "copy-start", "copy-done", "slice-start", "slice-done", "while", "conditional",
  "opt-barrier", "send-done", "recv", "recv-done", "iota", "add-dependency",
}  # fmt: skip
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
SHAPE = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9]\w*)?)\[([0-9,]*)\](\{[^}]*\})?")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: `%name = shape opcode(operands), rest`."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  rest: str

  @functools.cached_property
  def arrays(self) -> list[tuple[str, tuple[int, ...], bool]]:
    """(dtype, dimensions, whether it lies in the chip's main memory) of each part of the shape."""
    return [
      (kind, tuple(int(n) for n in dims.split(",") if n), "S(" not in (layout or ""))
      for kind, dims, layout in SHAPE.findall(self.shape)
    ]

  @property
  def size(self) -> float:
    """Bytes of the result, wherever it lies."""
    return sum(bits_of(kind) * math.prod(dims) for kind, dims, _ in self.arrays)

  @property
  def main_size(self) -> float:
    """Bytes of the result in main memory."""
    return sum(bits_of(kind) * math.prod(dims) for kind, dims, main in self.arrays if main)

  def called(self, *keys: str) -> list[str]:
    """Computations named by attributes such as `calls` or `body`."""
    found = re.findall(rf"\b(?:{'|'.join(keys)})=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest)
    return [name for group in found for name in re.findall(r"%([\w.\-]+)", group)]

  @property
  def cycles(self) -> int:
    found = re.search(r'"estimated_cycles":"(-?\d+)"', self.rest)
    return max(int(found[1]), 0) if found else 0

  @property
  def calibrated(self) -> bool:
    """Whether the compiler's cost model vouches for its cycles."""
    return "COST_MODEL_TYPE_CLASSIC" in self.rest

  @property
  def op_name(self) -> str:
    """Where it was traced: jit(train_step)/..."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ""


def bits_of(kind: str) -> float:
  """Bytes of one value: f32 -> 4."""
  return WIDTH[kind] if kind in WIDTH else int((re.findall(r"\d+", kind) or ["8"])[0]) / 8


@dataclasses.dataclass
class Collective:
  """Communication of one instruction, all its trips together."""

  kind: str
  bytes: float  # that one chip sends, in rings
  groups: list[list[int]]  # of device numbers
  hidden: bool  # runs beside other work
  dtype: str
  name: str


@dataclasses.dataclass
class Step:
  """One executed instruction, times its trips."""

  name: str
  op_name: str
  trips: int
  flops: float
  cycles: float
  calibrated: bool
  bytes: float
  detail: str = ""


class Program:
  """A parsed module. `steps`, `collectives` and `kernels` walk it with trips multiplied out."""

  def __init__(self, text: str):
    self.computations, self.entry = parse(text)
    self.index = {c: {i.name: i for i in body} for c, body in self.computations.items()}
    self.products = functools.cache(self._products)

  def walk(self) -> Iterator[tuple[str, Instruction, int]]:
    """(computation, instruction, times) of all that is executed; fusions are leaves."""

    def visit(name, times):
      for i in self.computations[name]:
        yield name, i, times
        if i.opcode == "while":
          trips = self.trips(i.called("condition")[0])
          yield from visit(i.called("body")[0], times * trips)
        elif i.opcode in ("call", "async-start") or "async_execution_thread" in i.rest:
          for inner in i.called("to_apply", "calls"):
            yield from visit(inner, times)
        elif i.opcode == "conditional":
          branches = i.called("branch_computations", "true_computation", "false_computation")
          yield from visit(branches[0], times)

    return visit(self.entry, 1)

  def trips(self, condition: str) -> int:
    """The largest integer that a loop's condition compares with."""
    numbers = [1]
    for i in self.computations[condition]:
      if i.opcode == "constant" and (found := re.match(r"\((\d+)\)", i.rest)):
        numbers.append(int(found[1]))
      numbers += [self.trips(name) for name in i.called("calls", "to_apply")]
    return max(numbers)

  def steps(self) -> list[Step]:
    """All work but collectives, copies that run beside it, and kernels."""
    out = []
    for where, i, times in self.walk():
      if i.opcode in FREE or self.communication(i) or i.opcode in ("custom-call", "call"):
        continue
      if i.opcode.endswith(("-start", "-done")) or self.part(i) == "done":
        continue
      inner = [self.products(name) for name in i.called("calls")]
      flops = sum(inner) + product_flops(i, self.index[where])
      work = (flops, i.cycles, self.moved(i, where))
      flops, cycles, moved = (x * times for x in work)
      out.append(Step(i.name, i.op_name, times, flops, cycles, i.calibrated, moved, i.shape[:80]))
    return out

  def _products(self, computation: str) -> float:
    """Floating-point operations of the products in a fused computation."""
    body = self.index[computation]
    return sum(
      product_flops(i, body) + sum(self.products(n) for n in i.called("calls"))
      for i in body.values()
    )

  def moved(self, i: Instruction, where: str) -> float:
    """Bytes to and from main memory: a slice of a stack counts as the slice."""
    body = self.index[where]
    operands = [body[name] for name in i.operands if name in body]
    names = i.called("calls")
    if i.opcode != "fusion" or not names:
      if i.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * i.main_size
      if i.opcode == "dynamic-update-slice":
        return 2 * operands[1].size
      return i.main_size + sum(x.main_size for x in operands)
    inside = self.computations[names[0]]
    parameters = sorted(
      (int(re.match(r"\((\d+)\)", x.rest)[1]), x.name)  # pyright: ignore
      for x in inside
      if x.opcode == "parameter"
    )
    total = 0.0
    for (_, name), operand in zip(parameters, operands, strict=False):
      users = [x for x in inside if name in x.operands]
      sliced = [x for x in users if x.opcode == "dynamic-slice" and x.operands[0] == name]
      updated = [x for x in users if x.opcode == "dynamic-update-slice" and x.operands[0] == name]
      if users and len(sliced) + len(updated) == len(users):
        total += sum(x.size for x in sliced) if operand.main_size else 0.0
      else:
        total += operand.main_size
    return total + self.written(inside, i)

  def written(self, inside: list[Instruction], i: Instruction) -> float:
    """Bytes that a fusion writes: an update of a stack counts as the update."""
    updates = {x.name: x for x in inside if x.opcode == "dynamic-update-slice"}
    sizes = {x.name: x.size for x in inside}
    saved = sum(x.size - sizes.get(x.operands[1], x.size) for x in updates.values())
    return max(i.main_size - saved, 0.0)

  def communication(self, i: Instruction) -> str | None:
    """The kind of collective that an instruction starts, else None."""
    base = i.opcode.removesuffix("-start")
    if base in COLLECTIVES or base == "send":
      return base
    names = i.called("calls")
    if i.opcode != "fusion" or not names:
      return None
    if "all-reduce-scatter" in names[0]:
      return "reduce-scatter"
    inside = self.computations[names[0]]
    found = [x.opcode for x in inside if x.opcode in COLLECTIVES]
    return found[0] if found and self.part(i) in ("", "start") else None

  def part(self, i: Instruction) -> str:
    """Of an asynchronous collective in fusions: "start", "during" (beside other work), "done"."""
    name = (i.called("calls") or [""])[0]
    targets = [x.rest for x in self.computations.get(name, []) if x.opcode == "custom-call"]
    for target, part in (("AsyncCollectiveStart", "start"), ("AsyncCollectiveDone", "done")):
      if any(f'"{target}"' in rest for rest in targets):
        return part
    return "during" if "async_collective_fusion" in name else ""

  def collectives(self, devices: int) -> list[Collective]:
    """What travels between `devices` chips, by instruction."""
    out = []
    for where, i, times in self.walk():
      if not (kind := self.communication(i)):
        continue
      hidden = i.opcode.endswith("-start") or self.part(i) == "start"
      source, scope = i, self.index[where]
      for name in i.called("calls"):  # the real instruction is inside a fusion
        for x in self.computations[name]:
          if x.opcode in COLLECTIVES:
            source, scope = x, self.index[name]
      groups = replica_groups(source.rest, devices)
      # The whole array: what comes out of a gather or reduction, what goes into a scatter.
      sizes = [scope[n].size for n in source.operands if n in scope]
      whole = max(sum(sizes), source.size if not hidden or source is not i else source.size / 2)
      n = len(groups[0]) if groups else 2
      share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0, "send": 1.0}
      sent = times * whole * share.get(kind, (n - 1) / n)
      if kind == "send":
        sent = times * sum(sizes[:1])
      dtype = source.arrays[0][0] if source.arrays else ""
      out.append(Collective(kind, sent, groups, hidden, dtype, i.name))
    return out

  def kernels(self, match: Callable[[Instruction], bool]) -> list[tuple[Instruction, list, int]]:
    """Pallas kernels that match: (instruction, operand shapes, times)."""
    found = []
    for where, i, times in self.walk():
      if i.opcode == "custom-call" and "tpu_custom_call" in i.rest and match(i):
        shapes = [self.index[where][n].arrays for n in i.operands if n in self.index[where]]
        found.append((i, [a[0][1] for a in shapes if a], times))
    return found


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Module text -> ({computation: instructions}, name of the entry).

  Kernels' backend_config may hold newlines, so a computation ends at a line that is just "}".
  """
  computations: dict[str, list[Instruction]] = {}
  entry, current = "", None
  head = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
  for line in text.split("\n"):
    if current is None:
      if found := head.match(line):
        current = found[2]
        computations[current] = []
        entry = current if found[1] else entry
    elif line == "}":
      current = None
    elif instruction := parse_line(line):
      computations[current].append(instruction)
    elif computations[current]:  # the rest of a kernel's line
      last = computations[current][-1]
      computations[current][-1] = dataclasses.replace(last, rest=f"{last.rest} {line}")
  if not entry:
    raise ValueError("the text holds no ENTRY computation")
  return computations, entry


def parse_line(line: str) -> Instruction | None:
  """One instruction; None for the rest of a kernel's config."""
  found = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = ", line)
  if not found:
    return None
  at = found.end()
  if line[at] == "(":  # a tuple's shape, with parentheses inside layouts
    end = closing(line, at) + 1
  else:
    end = line.index(" ", at)
  shape, rest = line[at:end], line[end + 1 :]
  if not (call := re.match(r"([\w\-]+)\(", rest)):
    return None
  stop = closing(rest, call.end() - 1)
  inner = rest[call.end() : stop]
  operands = tuple(re.findall(r"%([\w.\-]+)", inner))
  tail = rest[stop + 1 :]
  if call[1] in ("constant", "parameter"):
    tail = f"({inner})" + tail
  return Instruction(found[1], shape, call[1], operands, tail)


def closing(text: str, start: int) -> int:
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  for found in re.finditer(r"[()]", text[start:]):
    depth += 1 if found[0] == "(" else -1
    if not depth:
      return start + found.start()
  return len(text)


def product_flops(i: Instruction, body: dict[str, Instruction]) -> float:
  """2 x multiplications of a convolution, which is what products are on TPU; 0 for the rest."""
  if i.opcode != "convolution" or len(i.operands) < 2:
    return 0.0
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
  if not labels or any(name not in body for name in i.operands[:2]):
    return 0.0
  left, right, out = labels.groups()
  a, b = (body[name].arrays[0][1] for name in i.operands[:2])
  shape = i.arrays[0][1]
  total = 2.0 * shape[out.index("b")] * shape[out.index("f")] * b[right.index("i")]
  described = re.search(r"window=\{([^}]*)\}", i.rest)
  window = dict(re.findall(r"(\w+)=([0-9x_\-]+)", described[1] if described else ""))
  spatial = [c for c in out if c.isdigit()]

  def values(key, default):
    return window[key].split("x") if key in window else [default] * len(spatial)

  for n, c in enumerate(spatial):
    low = int(values("pad", "0_0")[n].split("_")[0])
    stride, spread, gap = (int(values(k, "1")[n]) for k in ("stride", "rhs_dilate", "lhs_dilate"))
    total *= taps(
      a[left.index(c)], b[right.index(c)], shape[out.index(c)], low, stride, spread, gap
    )
  return total


@functools.cache
def taps(given: int, size: int, out: int, low: int, stride: int, spread: int, gap: int) -> int:
  """Pairs of output place and window place that meet an input, along one dimension."""
  at = np.arange(out)[:, None] * stride + np.arange(size) * spread - low
  return int(((at >= 0) & (at <= (given - 1) * gap) & (at % gap == 0)).sum())


def replica_groups(rest: str, devices: int) -> list[list[int]]:
  """Groups of device numbers that talk to each other, from either way of writing them."""
  if found := re.search(r"replica_groups=\{(\{[0-9,{} ]*\})\}", rest):
    return [[int(n) for n in g.split(",")] for g in re.findall(r"\{([0-9, ]+)\}", found[1])]
  iota = r"\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?"
  if found := re.search(r"replica_groups=" + iota, rest):
    shape, ids = numbers(found[1]), reordered(numbers(found[2]), found[3])
    return ids.reshape(shape).tolist()
  mesh = r"replica_groups=mesh\[([^\]]*)\](?:[^{]*?device_ids=\(([^)]*\)?)\))? ?\{([^}]*)\}"
  if found := re.search(mesh, rest):
    sizes = dict((k, int(v)) for k, v in re.findall(r"'([^']+)'=(\d+)", found[1]))
    ids = np.arange(math.prod(sizes.values()))
    if found[2] and (order := re.match(r"\[([0-9,]+)\](?:T\(([0-9,]+)\))?", found[2])):
      ids = reordered(numbers(order[1]), order[2])
    axes = [list(sizes).index(k) for k in re.findall(r"'([^']+)'", found[3])]
    ids = np.moveaxis(ids.reshape(tuple(sizes.values())), axes, range(-len(axes), 0))
    return ids.reshape(-1, math.prod(list(sizes.values())[k] for k in axes)).tolist()
  if found := re.search(r"source_target_pairs=\{([0-9,{} ]*)\}", rest):
    return [[int(n) for n in g.split(",")] for g in re.findall(r"\{([0-9, ]+)\}", found[1])]
  return [list(range(devices))]


def numbers(text: str) -> list[int]:
  return [int(n) for n in text.split(",")]


def reordered(sizes: list[int], permutation: str | None) -> np.ndarray:
  """0, 1, .. as an array of `sizes`, transposed."""
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return ids.transpose(numbers(permutation)) if permutation else ids


def totals(collectives: list[Collective]) -> dict[str, float]:
  """Bytes by kind."""
  out: dict[str, float] = collections.defaultdict(float)
  for c in collectives:
    out[c.kind] += c.bytes
  return dict(out)
