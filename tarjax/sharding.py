"""Mesh, the one table of sharding rules, and the four functions that use it.

Parameter axes (`embed`) and activation axes (`act_embed`) have different names, so that a rule
has one meaning. "jit with shardings" is all the parallelism there is: XLA inserts the
collectives.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.linen import spmd
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# fmt: off
RULES = (
    ("batch",     ("data", "fsdp")),  # activations
    ("length",    None),
    ("act_embed", None),
    ("act_mlp",   "model"),
    ("act_heads", "model"),
    ("act_vocab", "model"),
    ("image",     None),
    ("channels",  None),
    ("layers",    None),              # parameters
    ("vocab",     ("model", "fsdp")),  # so that each part of `model` is a range of words
    ("codebook",  ("model", "fsdp")),
    ("embed",     "fsdp"),
    ("mlp",       "model"),
    ("heads",     "model"),
    ("head_dim",  None),
    ("position",  None),
    ("condition", None),
    ("kernel_y",  None),
    ("kernel_x",  None),
    ("conv_in",   None),
    ("conv_out",  None),
)
# fmt: on

AXES = ("data", "fsdp", "model")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
  """{"slices": -1, "data": -1, "fsdp": 16, "model": 1} -> Mesh.

  `data`, `fsdp` and `model` are sizes within a slice, and one -1 takes the devices that are left.
  Slices, which are connected by the slower network of the data centre, are the outer part of the
  mesh's axis `data`: only the sum of the gradients crosses it. -1 slices are as many as there are,
  1 overlooks them. Axes are Auto: with Explicit ones, Linen's constraints raise.

  Args:
    sizes: by name; an axis that is left out has size 1, `slices` is -1 then.
    devices: those of the mesh; None is all.

  Raises:
    ValueError: an unknown axis, sizes whose product is not the number of devices, or a data axis
      that the slices do not divide.
  """
  unknown = sorted(set(sizes) - {"slices", *AXES})
  if unknown:
    raise ValueError(f"config.mesh has unknown axes {unknown}; the axes are {['slices', *AXES]}")
  devices = jax.devices() if devices is None else list(devices)
  there = len({slice_of(device) for device in devices})
  slices, full = int(sizes.get("slices", -1)), {axis: int(sizes.get(axis, 1)) for axis in AXES}
  slices = there if slices == -1 else slices
  said = f"config.mesh={dict(sizes)} does not fit {len(devices)} devices in {there} slices"
  free = [axis for axis, size in full.items() if size == -1]
  given = [size for size in full.values() if size != -1]
  if min(slices, *given, 1) < 1 or (there > 1 and slices not in (1, there)) or len(free) > 1:
    raise ValueError(said)
  count, fixed = len(devices) / slices, math.prod(given)
  if count % fixed or (not free and fixed != count):
    raise ValueError(said)
  if free:
    full[free[0]] = int(count) // fixed
  shape = tuple(full.values())
  if slices == 1:
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  elif there == slices:
    grid = mesh_utils.create_hybrid_device_mesh(
      shape, (slices, 1, 1), devices, allow_split_physical_axes=True
    )
  else:  # devices that know of no slices, such as those of a CPU: consecutive ones are one
    grid = np.reshape(np.asarray(devices), (slices * shape[0], *shape[1:]))
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(batch: int, accumulate: int, mesh: Mesh) -> None:
  """Raises ValueError unless every device gets as many rows of every part of a batch."""
  parts = batch_parts(mesh)
  if batch % (parts * accumulate):
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    said = (
      f"config.batch={batch} does not divide over data x fsdp x accumulate = {parts * accumulate}: "
      f"config.mesh is {sizes} here, and config.accumulate={accumulate}"
    )
    fitting = math.gcd(parts, batch // accumulate)
    if batch % accumulate == fitting % mesh.shape["fsdp"] == 0:
      said += f"; it would with config.mesh.model={mesh.shape['model'] * parts // fitting}"
    raise ValueError(said)


def batch_parts(mesh: Mesh | None = None) -> int:
  """How many parts of a batch lie apart: on a mesh, or on the one that is set; without any, 1."""
  shape = (jax.sharding.get_abstract_mesh() if mesh is None else mesh).shape
  return math.prod(shape.get(axis, 1) for axis in ("data", "fsdp"))


def slice_of(device) -> int:
  """Number of the slice that a device belongs to, 0 where there are none."""
  try:
    return int(device.slice_index)
  except (AttributeError, RuntimeError):  # a planned single slice raises
    return 0


def platform() -> str:
  """What the code that is being traced will run on: "cpu", "gpu" or "tpu".

  That is the mesh's, which need not be this machine's: plan compiles for chips that are not here.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def named(init, *axes: str | None) -> Callable[..., Any]:
  """Initializer whose result carries logical axis names."""
  return nn.with_logical_partitioning(init, axes)


def shard(x, *axes: str | None):
  """Constrains an activation; an axis without a rule is an error, not a guess."""
  return spmd.with_logical_constraint(x, axes, rules=RULES, fallback=spmd.RulesFallback.RAISE_ERROR)


def tree_shardings(abstract, mesh: Mesh, rules=RULES):
  """Boxed abstract tree -> matching (unboxed) tree of NamedSharding.

  Raises:
    ValueError: a dimension that its mesh axes do not divide, with its name and the parameter's.
  """
  logical = nn.get_partition_spec(abstract)
  shardings = spmd.logical_to_mesh_sharding(logical, mesh, rules)

  def check(path, leaf, names, sharding):
    for size, name, axes in zip(leaf.shape, names, sharding.spec, strict=False):
      axes = (axes,) if isinstance(axes, str) else axes or ()
      if size % math.prod(mesh.shape[axis] for axis in axes):
        parameter = jax.tree_util.keystr(path, simple=True, separator="/")
        over = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
        raise ValueError(
          f"{name}={size} of {parameter} {leaf.shape} does not divide over config.mesh's {over}"
        )
    return sharding

  return jax.tree_util.tree_map_with_path(check, nn.meta.unbox(abstract), logical, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Leading axis of every array of a batch over all data-parallel devices."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())
