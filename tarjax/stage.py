"""A stage put together on a mesh, before it has any values: what train runs, plan compiles for
other chips and bench times on made-up data.
"""

import collections
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh

from tarjax import chips, costs, optim, sharding, state, tasks
from tarjax.config import UserError, told


@dataclasses.dataclass(frozen=True)
class Stage:
  """The config's task and optimizer, and the shapes and places of all that they need."""

  config: Any
  task: tasks.Task
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  layout: state.Layout
  mesh: Mesh

  @property
  def shares(self) -> dict[tuple, float]:
    """How often each value of the static arguments is drawn, over the whole run.

    The longest sequence comes first, and what is left out last.
    """
    every = max(self.config.steps // 1000, 1)
    drawn = collections.Counter(
      tuple(sorted(self.task.static(s * every).items())) for s in range(1000)
    )
    return {s: drawn[s] / 1000 for s in sorted(drawn, key=lambda s: (-len(s), s))}

  @property
  def parameters(self) -> int:
    return sum(x.size for x in jax.tree.leaves(self.layout.params))

  def programs(self) -> state.Programs:
    """The steps, as the mesh's devices take them."""
    parts = (self.task, self.optimizer, self.schedule, self.layout, self.mesh)
    return state.Programs(*parts, self.config.accumulate, dict(self.config.get("compiler", {})))

  def batch(self) -> dict[str, Any]:
    """ShapeDtypeStructs of a global batch, by `config.data.format`; see data.rows.

    Raises:
      UserError: another format.
    """
    place, b, data = sharding.batch_sharding(self.mesh), self.config.batch, self.config.data
    task: Any = self.task

    def of(dtype, *shape):
      return jax.ShapeDtypeStruct((b, *shape), dtype, sharding=place)

    match data.format:
      case "packed":
        names, layout = ("tokens", "labels", "segments", "positions"), task.representation.layout
        row = {name: of(np.int32, data.length) for name in names}
        if layout.places:
          pictures = (data.length // layout.places, layout.side, layout.side, 3)
          row |= {"places": of(np.int32, data.length), "pictures": of(np.uint8, *pictures)}
        if layout.books:
          row["subcodes"] = of(np.int32, data.length, layout.books)
        return row
      case "codes" | "classes" | "latents":
        return {name: of(field.dtype, *field.shape) for name, field in task.fields.items()}
      case "pairs":
        pair = {"image": of(np.uint8, data.size, data.size, 3)}
        pair["text"] = of(np.int32, data.text_length)
        named = getattr(task, "naming", {}).get("names")
        return pair | {"regions": of(np.int32, task.parts, len(named))} if named else pair
      case "images":
        return {"image": of(np.uint8, data.size, data.size, 3)}
      case other:
        raise UserError(f"config.data.format={other!r} is none of the pipeline's")

  def throughput(self) -> tuple[str, int]:
    """What a step reads: ("tokens" or "images", how many)."""
    if self.config.data.format == "packed":
      return "tokens", self.config.batch * self.config.data.length
    return "images", self.config.batch

  def model_flops(self, static: dict[str, Any]) -> float:
    """Products of one global step, none of them computed twice, causal attention halved."""
    config = self.config.copy_and_resolve_references()
    with config.unlocked():
      config.model.update({"remat": "none"} if "remat" in config.model else {})
    loss = tasks.make_task(config).loss

    def gradient(params, frozen, batch, rng):
      return jax.value_and_grad(
        lambda p: loss(p, frozen, batch, rng, train=True, **static), has_aux=True
      )(params)

    return traced_flops(gradient, self.layout.params, self.layout.frozen, self.batch(), a_key())


def make_stage(config, devices=None) -> Stage:
  """The stage of a config on these devices, with its settings for them; None is all there are.

  Raises:
    UserError: a mesh that does not fit them or that a dimension does not divide by, a batch that
      does not divide, or a mistake in the config.
  """
  devices = jax.devices() if devices is None else list(devices)
  config = chips.settled(config, devices)
  with told():
    mesh = sharding.make_mesh(config.mesh.to_dict(), devices)
    sharding.check_batch(config.batch, config.accumulate, mesh)
  with told(TypeError):
    task = tasks.make_task(config)
  optimizer = optim.make_optimizer(config.optim, config.steps)
  schedule = optim.make_schedule(config.optim, config.steps)
  with told():
    layout = state.make_layout(task, optimizer, mesh)
  return Stage(config, task, optimizer, schedule, layout, mesh)


def traced_flops(function, *arguments) -> float:
  """Operations of a function's products on all devices. It is traced for a chip of no known kind:
  kernels hide their products, and strips are not whole ones. So no mesh may be set around it.
  """
  plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
  chip = jax.sharding.AbstractDevice(device_kind="any", num_cores=None, platform="any")
  auto = (AxisType.Auto,) * len(sharding.AXES)
  mesh = AbstractMesh((1, 1, 1), sharding.AXES, axis_types=auto, abstract_device=chip)
  with jax.sharding.use_abstract_mesh(mesh):
    return costs.traced_flops(jax.make_jaxpr(function)(*plain).jaxpr)


@functools.cache
def a_key() -> Any:
  """The shape of a random key."""
  return jax.eval_shape(lambda: jax.random.key(0))
