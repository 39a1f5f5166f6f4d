"""What is known of a chip: published rates, what was measured of its compiler, and what a config
sets for it.

Peak, memory and links are the vendor's. The clock turns the compiler's cycles into seconds; with
it an 8192^3 product takes 70 to 90% of peak's time on all three. Attention's kernels carry no
cycles; their static schedules do (one bundle is a cycle), and two numbers describe each direction:
seconds for 1,024 x 1,024 visited logits of one head, and for every 1,024 queries besides.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Rates are per chip and second.

  Attributes:
    kinds: what JAX calls it, here or there.
    peak: bfloat16 floating-point operations.
    memory: bytes that a program can have.
    read: bytes of main memory.
    clock: cycles.
    link: bytes over the links along one axis of the torus, both ways, 10% off the published rate.
    dcn: bytes to other slices.
    hosts: chips of one machine, per axis.
    forward, backward: microseconds of the splash kernel, as the module says.
  """

  kinds: tuple[str, ...]
  peak: float
  memory: float
  read: float
  clock: float
  link: float
  dcn: float
  forward: tuple[float, float]
  backward: tuple[float, float]


# fmt: off
CHIPS = {
  "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, 15.75 * GIB, 0.819e12, 1.5e9,  90e9,  3.1e9,
              (2.64, 1.79), (6.45, 0.47)),
  "v5p": Chip(("TPU v5", "TPU v5p"),      459e12, 95.74 * GIB, 2.765e12, 1.75e9, 180e9, 6.2e9,
              (1.41, 0.52), (2.74, 0.27)),
  "v6e": Chip(("TPU v6 lite", "TPU v6e"), 918e12, 31.25 * GIB, 1.638e12, 1.75e9, 180e9, 12.5e9,
              (1.97, 0.72), (3.58, 0.36)),
}
# fmt: on


# bfloat16 operations of a GPU per second, dense, by a part of what JAX calls it.
GPU_PEAKS = {
  "H100 PCIe": 756e12,
  "H100": 989e12,
  "H200": 989e12,
  "H800": 989e12,
  "B200": 2250e12,
  "A100": 312e12,
  "L40S": 362e12,
  "L4": 121e12,
}


def peak_of(kind: str) -> float | None:
  """bfloat16 operations per second of a device of this kind, None for one that is not known."""
  tpus = {name: chip.peak for chip in CHIPS.values() for name in chip.kinds}
  return tpus.get(kind) or next((p for name, p in GPU_PEAKS.items() if name in kind), None)


def settled(config: Any, devices: Sequence[Any]) -> Any:
  """A copy of the config with what its `chips` say for this kind of device, and no more `chips`."""
  names = [name for name, chip in CHIPS.items() if devices[0].device_kind in chip.kinds]
  chosen = config.copy_and_resolve_references()
  with chosen.unlocked():
    for name in names:
      chosen.update(config.get("chips", {}).get(name, {}))
    chosen.chips = {}
  return chosen


def axes_spanned(group: Sequence[Sequence[int]], size: Sequence[int], chip: str) -> float:
  """How many axes of the torus a group of chips can use at once; an open axis counts half.

  Args:
    group: the chips' coordinates.
    size: chips along each axis of the slice.
    chip: a key of CHIPS. On v5p an axis closes when it is a multiple of 4, else at 16.
  """
  total = 0.0
  for places, length in zip(zip(*group, strict=True), size, strict=True):
    if len(set(places)) > 1:
      closed = length % 4 == 0 if chip == "v5p" else length == 16
      total += 1.0 if closed and len(set(places)) == length else 0.5
  return max(total, 0.5)
