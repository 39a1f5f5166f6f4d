"""What a run carries, where it starts from, and how one step changes it.

The order of starting points: the run's own last checkpoint, else `config.init` and
`config.frozen` over random parameters, then what the task computes from them.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tarjax import checkpoint
from tarjax.config import UserError
from tarjax.convert.rules import flatten, unflatten
from tarjax.optim import opt_shardings
from tarjax.sharding import batch_sharding, replicated, shard, tree_shardings


class TrainState(NamedTuple):
  step: Any  # int32[], finished steps
  params: Any
  opt: Any


class Layout(NamedTuple):
  """ShapeDtypeStructs with shardings of everything that lives on the devices."""

  params: Any
  opt: Any
  frozen: Any


def make_keys(seed: int, mesh) -> tuple[jax.Array, jax.Array]:
  """One key for the parameters and one for the steps, on every device."""
  make = jax.jit(
    lambda s: tuple(jax.random.split(jax.random.key(s))), out_shardings=replicated(mesh)
  )
  return make(np.uint32(seed))


def make_layout(task, optimizer, mesh) -> Layout:
  """Shapes and shardings, without computing anything.

  Raises:
    ValueError: a dimension that the mesh does not divide, with the parameter's name.
  """
  key = jax.eval_shape(lambda: jax.random.key(0))
  boxed, boxed_frozen = jax.eval_shape(task.init, key), jax.eval_shape(task.init_frozen, key)
  shardings = tree_shardings(boxed, mesh)
  params = nn.meta.unbox(boxed)
  opt = opt_shardings(optimizer, params, shardings, replicated(mesh))
  return Layout(
    checkpoint.abstract(params, shardings),
    checkpoint.abstract(*opt),
    checkpoint.abstract(nn.meta.unbox(boxed_frozen), tree_shardings(boxed_frozen, mesh)),
  )


def put_step(step: int, mesh) -> jax.Array:
  return jax.device_put(np.int32(step), replicated(mesh))


def restore(saver, step: int, layout: Layout, meta: dict, workdir: Path, mesh):
  """The run's own checkpoint -> (state, frozen, number of the next batch).

  Raises:
    UserError: it was saved with another seed or other data than `meta` says.
  """
  params, opt, saved = saver.restore(step, layout.params, layout.opt)
  batch = saved.pop("next_batch", step)
  if saved != dict(meta, next_step=step):
    raise UserError(f"checkpoint {step} in {workdir} belongs to other data: {saved}, not {meta}")
  frozen = checkpoint.restore_frozen(workdir, layout.frozen)
  return TrainState(put_step(step, mesh), params, opt), frozen, batch


def begin(task, config, optimizer, layout: Layout, key, workdir: Path, mesh, batch):
  """Step 0 -> (state, frozen); writes the frozen networks.

  Raises:
    UserError: with `config.init` or frozen networks, a parameter that was neither loaded nor
      computed nor named in `config.dont_load`; or a start of the wrong names or shapes.
  """
  load = functools.partial(checkpoint.open_tree, relative_to=workdir)
  skip, specs = config.dont_load, (config.init.to_dict(), config.frozen.to_dict())
  loaded = (
    checkpoint.fill(layout.params, specs[0], skip, load),
    checkpoint.fill(layout.frozen, specs[1], skip, load, prefix="frozen/"),
  )
  random = draw(task, key, loaded)
  params, frozen = (
    unflatten(flatten(tree) | new) for tree, new in zip(loaded, random, strict=True)
  )
  params, frozen = put(params, layout.params), put(frozen, layout.frozen)
  params, frozen = task.start(params, frozen, load, workdir, batch)
  same_tree(params, layout.params, "")
  same_tree(frozen, layout.frozen, "frozen/")
  check_filled(random[0] if config.init else {}, params, skip, "")
  check_filled(random[1], frozen, skip, "frozen/")
  params, frozen = put(params, layout.params), put(frozen, layout.frozen)
  places = jax.tree.map(lambda x: x.sharding, layout.opt)
  opt = jax.jit(optimizer.init, out_shardings=places)(params)
  checkpoint.save_frozen(workdir, frozen)
  return TrainState(put_step(0, mesh), params, opt), frozen


def draw(task, key, trees) -> list[dict[str, jax.Array]]:
  """The task's random start of what is still abstract in (params, frozen), by name.

  Nothing else is computed: networks that are loaded need neither the time nor the memory.
  """
  left = [
    {name: x.sharding for name, x in flatten(tree).items() if isinstance(x, jax.ShapeDtypeStruct)}
    for tree in trees
  ]
  # It runs once, and on CPU optimizing it takes longer than all else before the first step.
  hurry = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

  @functools.partial(jax.jit, out_shardings=left, compiler_options=hurry)
  def init(key):
    one, two = jax.random.split(key)
    whole = nn.meta.unbox(task.init(one)), nn.meta.unbox(task.init_frozen(two))
    return [
      {name: flatten(tree)[name] for name in names} for tree, names in zip(whole, left, strict=True)
    ]

  return init(key)


def put(tree, layout):
  """Every array in its place: a process reads no more of one than its own devices hold."""

  def place(new, like):
    if isinstance(new, jax.Array) and new.sharding == like.sharding and new.dtype == like.dtype:
      return new

    @functools.cache
    def read(*ends):
      return np.asarray(new[tuple(slice(*end) for end in ends)], like.dtype)

    return jax.make_array_from_callback(
      like.shape, like.sharding, lambda part: read(*((s.start, s.stop) for s in part or ()))
    )

  return jax.tree.map(place, tree, layout)


def same_tree(tree, layout, prefix: str) -> None:
  """Raises UserError unless names and shapes are those of the layout."""
  mine = {k: tuple(v.shape) for k, v in flatten(tree).items()}
  want = {k: tuple(v.shape) for k, v in flatten(layout).items()}
  if mine != want:
    names = sorted(k for k in mine.keys() | want.keys() if mine.get(k) != want.get(k))
    pairs = [f"{prefix}{k}: {mine.get(k)} computed, {want.get(k)} in the model" for k in names]
    raise UserError("the task's starting point does not fit:\n  " + "\n  ".join(pairs))


def check_filled(random: dict, started, dont_load, prefix: str) -> None:
  """Raises UserError listing parameters that are still the random ones, unless in dont_load."""
  after = flatten(started)
  names = [prefix + name for name, array in random.items() if after[name] is array]
  names = [name for name in names if not checkpoint.skipped(name, dont_load)]
  if names:
    raise UserError(
      "neither loaded nor computed, name them in config.dont_load to leave them random:\n  "
      + "\n  ".join(sorted(names))
    )


def parameter_table(layout: Layout) -> str:
  """One line per parameter: name, shape, how it is split, number of values."""
  lines = []
  for prefix, tree in (("", layout.params), ("frozen/", layout.frozen)):
    total, flat = 0, flatten(tree)
    for name, leaf in flat.items():
      total += leaf.size
      spec = ", ".join(str(axis) for axis in leaf.sharding.spec)
      lines.append(f"{prefix + name:<60} {str(leaf.shape):<24} ({spec}) {leaf.size:,}")
    lines.append(f"{prefix or 'trained/'} total {total:,} in {len(flat)} arrays\n")
  return "\n".join(lines)


def train_step(state: TrainState, frozen, batch, key, *, loss, optimizer, schedule, parts=1):
  """One update: pure, it reads its arguments and returns (state, metrics).

  With a loss or gradient that is not finite only the step is counted: `metrics["skipped"]`.
  """
  rng = jax.random.fold_in(key, state.step)
  (value, metrics), grads = gradient(loss, state.params, frozen, batch, rng, parts)
  updates, opt = optimizer.update(grads, state.opt, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics = dict(metrics, loss=value, grad_norm=optax.tree.norm(grads), lr=schedule(state.step))
  good = jnp.isfinite(value) & jnp.isfinite(metrics["grad_norm"])
  old, new = (state.params, state.opt), (params, opt)
  params, opt = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
  return TrainState(state.step + 1, params, opt), dict(metrics, skipped=~good)


def gradient(loss, params, frozen, batch, rng, parts: int):
  """((loss, metrics), gradient) of a batch, which is taken in `parts`, one after the other.

  A part weighs what it counts: a loss that is a mean over labelled tokens says in
  `metrics["counts"]` how many those are; parts of other batches weigh the same. So the result is
  that of the whole batch, up to rounding, but for what each part draws at random.
  """
  grad_fn = jax.value_and_grad(loss, has_aux=True)
  if parts == 1:
    (value, metrics), grads = grad_fn(params, frozen, batch, rng)
    return (value, without(metrics, "counts")), grads

  def split(x):  # [b ...] -> [parts b/parts ...]; every device keeps the rows that it has
    x = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
    return shard(x, None, "batch", *[None] * (x.ndim - 2))

  def add(total, xs):
    number, part = xs
    (value, metrics), grads = grad_fn(params, frozen, part, jax.random.fold_in(rng, number))
    counts = {"loss": jnp.float32(1)} | metrics.get("counts", {})
    total = jax.tree.map(lambda t, g: t + counts["loss"] * g, total, grads)
    return total, (dict(without(metrics, "counts"), loss=value), counts)

  def mean(name, x):  # [parts] -> []
    if x.ndim > 1:  # codes
      return x.reshape(-1, *x.shape[2:])
    weight = counts.get(name, jnp.ones(parts))
    return (x * weight).sum() / jnp.maximum(weight.sum(), 1)

  xs = (jnp.arange(parts), jax.tree.map(split, batch))
  total, (seen, counts) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), xs)
  metrics = {name: mean(name, x) for name, x in seen.items()}
  whole = jnp.maximum(counts["loss"].sum(), 1)
  return (metrics.pop("loss"), metrics), jax.tree.map(lambda t: t / whole, total)


def without(metrics: dict, *names: str) -> dict:
  return {name: x for name, x in metrics.items() if name not in names}


def eval_step(params, frozen, batch, key, index, *, loss):
  """Loss and metrics without an update; `index` is the number of the batch."""
  value, metrics = loss(params, frozen, batch, jax.random.fold_in(key, index))
  return dict(without(metrics, "codes", "counts"), loss=value)


class Programs:
  """The compiled steps of a task: one program per value of its static arguments.

  `options` are XLA's, `config.compiler`.

  Raises:
    UserError: `parts` > 1 for a loss that is no mean over examples.
  """

  def __init__(self, task, optimizer, schedule, layout: Layout, mesh, parts=1, options=None):
    if parts > 1 and (why := getattr(task, "couples", "")):
      raise UserError(f"config.accumulate={parts} would change the loss: {why}")
    self.options = options or None
    self.task, self.optimizer, self.schedule, self.parts = task, optimizer, schedule, parts
    self.shardings = jax.tree.map(lambda x: x.sharding, layout)
    self.batch, self.all = batch_sharding(mesh), replicated(mesh)
    self.cache: dict[Any, Any] = {}

  def __call__(self, train: bool, static: dict) -> tuple[Any, bool]:
    """(jitted step, whether this is its first use and will compile)."""
    name = (train, *sorted(static.items()))
    if first := name not in self.cache:
      loss = functools.partial(self.task.loss, train=train, **static)
      self.cache[name] = self._train(loss) if train else self._eval(loss)
    return self.cache[name], first

  def _train(self, loss):
    where = self.shardings
    state = TrainState(self.all, where.params, where.opt)
    make: Any = {"optimizer": self.optimizer, "schedule": self.schedule, "parts": self.parts}
    return jax.jit(
      functools.partial(train_step, loss=loss, **make),
      in_shardings=(state, where.frozen, self.batch, self.all),
      out_shardings=(state, self.all),
      donate_argnums=0,
      compiler_options=self.options,
    )

  def _eval(self, loss):
    where = self.shardings
    return jax.jit(
      functools.partial(eval_step, loss=loss),
      in_shardings=(where.params, where.frozen, self.batch, self.all, self.all),
      out_shardings=self.all,
      compiler_options=self.options,
    )
