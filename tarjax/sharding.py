"""Mesh, the one table of sharding rules, and the four functions that use it.

Parameter axes (`embed`) and activation axes (`act_embed`) have different names, so that a rule
has one meaning. "jit with shardings" is all the parallelism there is: XLA inserts the
collectives.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
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
    ("kernel_y",  None),
    ("kernel_x",  None),
    ("conv_in",   None),
    ("conv_out",  None),
)
# fmt: on

AXES = ("data", "fsdp", "model")


def make_mesh(sizes: dict[str, int], devices: Sequence[Any] | None = None) -> Mesh:
  """{"data": -1, "fsdp": 1, "model": 1} -> Mesh; one -1 takes the devices that are left.

  Slices are connected by the data centre's network, and each holds an equal part of `data`, so
  that only gradients cross it. Axes are Auto: with Explicit ones, Linen's constraints raise.

  Args:
    sizes: how many devices along each axis; 1 where it does not say.
    devices: None is all there are.

  Raises:
    ValueError: an unknown axis, sizes whose product is not the number of devices, or a data axis
      that the slices do not divide.
  """
  unknown = sorted(set(sizes) - set(AXES))
  if unknown:
    raise ValueError(f"config.mesh has unknown axes {unknown}; the axes are {list(AXES)}")
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  full = {axis: int(sizes.get(axis, 1)) for axis in AXES}
  fixed = 1
  for size in full.values():
    fixed *= size if size != -1 else 1
  free = [axis for axis, size in full.items() if size == -1]
  if len(free) > 1 or (free and count % fixed) or (not free and fixed != count):
    raise ValueError(f"config.mesh={full} does not fit {count} devices")
  if free:
    full[free[0]] = count // fixed
  slices = slice_count(devices)
  if full["data"] % slices:
    raise ValueError(f"config.mesh={full}: data does not divide over {slices} slices")
  sizes = (full["data"] // slices, full["fsdp"], full["model"])
  split: Any = {"devices": devices, "allow_split_physical_axes": True}  # 8 chips of a 4 x 4 torus
  if slices == 1:
    placed = mesh_utils.create_device_mesh(sizes, **split)
  else:
    placed = mesh_utils.create_hybrid_device_mesh(sizes, (slices, 1, 1), **split)
  return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def slice_count(devices: Sequence[Any]) -> int:
  """How many TPU slices the devices are on; 1 for anything that knows no slices."""
  if len(devices) == 0 or devices[0].platform != "tpu":
    return 1
  try:
    return len({device.slice_index for device in devices})
  except (AttributeError, RuntimeError):  # a description of one slice
    return 1


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
    ValueError: a dimension that its mesh axes do not divide, with the parameter's name.
  """
  shardings = spmd.logical_to_mesh_sharding(nn.get_partition_spec(abstract), mesh, rules)

  def check(path, leaf, sharding):
    try:
      sharding.shard_shape(leaf.shape)
    except ValueError as e:
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise ValueError(
        f"{name} {leaf.shape} does not divide over {sharding.spec} on {mesh.shape}"
      ) from e
    return sharding

  return jax.tree_util.tree_map_with_path(check, nn.meta.unbox(abstract), shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Leading axis of every array of a batch over all data-parallel devices."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())
