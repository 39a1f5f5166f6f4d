"""The traps of Linen on a mesh, each with the way around it that this project takes."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_stage import Net
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tarjax import sharding
from tarjax.models.layers import Linear

SIZES = {"data": 2, "fsdp": 2, "model": 2}


class Heads(nn.Module):
  @nn.compact
  def __call__(self, x):
    shape, axes = (x.shape[-1], 4, 2), ("embed", "heads", "head_dim")
    return Linear("bld,dhk->blhk", shape, axes, bias=True, name="q")(x)


def constraints(enter, mesh) -> int:
  """How many sharding constraints the network carries, lowered under `enter(mesh)`."""
  net, x = Net(8, 3), jnp.ones((8, 4, 8))
  params = nn.meta.unbox(net.init(jax.random.key(0), x))
  place = jax.device_put(x, sharding.batch_sharding(mesh))
  with enter(mesh):
    return jax.jit(net.apply).lower(params, place).as_text().count("sharding_constraint")


def test_mesh_axes_are_auto():
  """jax.make_mesh defaults to explicit axes, on which Linen's constraints raise."""
  mesh = sharding.make_mesh(SIZES)
  assert mesh.axis_types == (AxisType.Auto,) * 3
  assert constraints(jax.set_mesh, mesh) == 3
  explicit = jax.make_mesh((2, 2, 2), sharding.AXES, axis_types=(AxisType.Explicit,) * 3)
  with pytest.raises((AssertionError, ValueError), match="(?i)explicit|auto"):
    constraints(jax.set_mesh, explicit)


def test_constraints_survive_only_under_set_mesh():
  """Under `with mesh:` every logical constraint is dropped without a word."""
  mesh = sharding.make_mesh(SIZES)
  assert constraints(lambda m: m, mesh) == 0
  assert constraints(jax.set_mesh, mesh) == 3


def test_an_axis_without_a_rule_is_an_error():
  mesh = sharding.make_mesh(SIZES)
  with jax.set_mesh(mesh), pytest.raises(ValueError, match="nonsense"):
    jax.jit(lambda x: sharding.shard(x, "batch", "nonsense"))(jnp.ones((8, 8)))


def test_rank_three_kernels_under_a_mesh():
  """nn.DenseGeneral with a partitioned rank-3 kernel fails here; Linear does not."""
  mesh = sharding.make_mesh(SIZES)
  layer = Heads()
  x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 8)), jnp.float32)
  with jax.set_mesh(mesh):
    boxed = jax.eval_shape(layer.init, jax.random.key(0), x)
    where = sharding.tree_shardings(boxed, mesh)
    init = jax.jit(lambda k: nn.meta.unbox(layer.init(k, x)), out_shardings=where)
    params = init(jax.random.key(0))
    y = jax.jit(layer.apply)(params, x)
  kernel = params["params"]["q"]["kernel"]
  assert kernel.sharding.spec == PartitionSpec("fsdp", "model", None)
  assert kernel.addressable_shards[0].data.shape == (4, 2, 2)
  np.testing.assert_allclose(y, np.einsum("bld,dhk->blhk", x, kernel), atol=1e-5)


@pytest.mark.parametrize(
  "sizes, shape",
  [
    ({"data": -1}, (8, 1, 1)),
    ({"fsdp": -1, "model": 2}, (1, 4, 2)),
    ({"data": 2, "fsdp": 2, "model": 2}, (2, 2, 2)),
  ],
)
def test_mesh_sizes(sizes, shape):
  assert tuple(sharding.make_mesh(sizes).shape.values()) == shape


@pytest.mark.parametrize(
  "sizes, words",
  [
    ({"data": 3}, "does not fit 8 devices"),
    ({"data": -1, "fsdp": 3}, "does not fit"),
    ({"data": -1, "fsdp": -1}, "does not fit"),
    ({"expert": 2}, "unknown axes"),
    ({"data": -2, "fsdp": -4}, "does not fit"),
    ({"slices": 3, "data": -1}, "does not fit 8 devices in 1 slices"),
  ],
)
def test_bad_mesh_sizes(sizes, words):
  with pytest.raises(ValueError, match=words):
    sharding.make_mesh(sizes)


def test_an_indivisible_dimension_is_named():
  """By its own name, the parameter's, and the mesh axes that do not divide it."""
  mesh = sharding.make_mesh(SIZES)
  boxed = {"a": {"kernel": nn.LogicallyPartitioned(jnp.ones((4, 3)), ("embed", "mlp"))}}
  words = r"mlp=3 of a/kernel \(4, 3\) does not divide over config.mesh's model=2"
  with pytest.raises(ValueError, match=words):
    sharding.tree_shardings(boxed, mesh)
  boxed = {"table": nn.LogicallyPartitioned(jnp.ones((6, 4)), ("vocab", "act_embed"))}
  with pytest.raises(ValueError, match=r"vocab=6 of table \(6, 4\) .* model=2 x fsdp=2"):
    sharding.tree_shardings(boxed, mesh)
  boxed = {"scale": jnp.ones(3), "bias": nn.LogicallyPartitioned(jnp.ones(3), (None,))}
  assert sharding.tree_shardings(boxed, mesh)["scale"].is_fully_replicated


class Chip:
  """What a mesh asks a TPU of several slices."""

  platform = "tpu"
  device_kind = "TPU v5 lite"
  process_index = 0

  def __init__(self, number: int, per_slice: int):
    self.id, self.slice_index = number, number // per_slice
    self.coords, self.core_on_chip = (number % per_slice, 0, 0), 0


def test_slices_are_the_outer_part_of_data():
  chips = [Chip(i, 4) for i in range(16)]
  mesh = sharding.make_mesh({"data": -1, "fsdp": 2}, chips[::-1])
  assert dict(mesh.shape) == {"data": 8, "fsdp": 2, "model": 1}
  slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
  assert (slices == np.repeat(np.arange(4), 2)[:, None, None]).all()
  assert dict(sharding.make_mesh({"slices": 4, "data": 2, "fsdp": 2}, chips).shape)["data"] == 8
  with pytest.raises(ValueError, match="does not fit 16 devices in 4 slices"):
    sharding.make_mesh({"slices": 2, "fsdp": 8}, chips)
  with pytest.raises(ValueError, match="does not fit 16 devices in 4 slices"):
    sharding.make_mesh({"fsdp": 16}, chips)  # one slice has but four


def test_devices_without_slices_are_cut_in_order():
  mesh = sharding.make_mesh({"slices": 2, "fsdp": 2, "model": 2})
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "model": 2}
  assert [d.id for d in mesh.devices.ravel()] == list(range(8))
  assert sharding.make_mesh({}, jax.devices()[:1]).size == 1


def test_batch_goes_over_data_and_fsdp():
  mesh = sharding.make_mesh(SIZES)
  x = jax.device_put(np.zeros((8, 3)), sharding.batch_sharding(mesh))
  assert x.addressable_shards[0].data.shape == (2, 3)
  assert sharding.replicated(mesh) == NamedSharding(mesh, PartitionSpec())


def test_a_batch_that_does_not_divide_is_refused_with_the_mesh():
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})
  sharding.check_batch(24, 3, mesh)
  words = (
    "config.batch=6 does not divide over data x fsdp x accumulate = 4: "
    "config.mesh is data=2, fsdp=2, model=2 here, and config.accumulate=1; "
    "it would with config.mesh.model=4"
  )
  with pytest.raises(ValueError, match=re.escape(words)):
    sharding.check_batch(6, 1, mesh)
  sharding.check_batch(6, 1, sharding.make_mesh({"data": -1, "fsdp": 2, "model": 4}))
  for batch, accumulate in ((7, 1), (16, 3)):  # no other mesh helps
    with pytest.raises(ValueError, match=f"config.accumulate={accumulate}$"):
      sharding.check_batch(batch, accumulate, mesh)
