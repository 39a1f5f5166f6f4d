"""What `bench` times: a stage's step and TaTok's encoding on made-up data, ours and PyTorch's."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from tarjax.config import UserError
from tarjax.stage import Stage, traced_flops
from tarjax.state import TrainState, make_keys, put_step
from tarjax.tasks.inputs import pixels
from tarjax.tasks.ta_tok import merge

ROUND = 1.0  # seconds, at least


@dataclasses.dataclass
class Side:
  """One of two that take turns.

  Attributes:
    name: "tarjax" or "torch".
    what: what is timed, and how, in words.
    run: does it n times and waits for the last.
    peak: bytes of the device that were in use at most, None if nobody counts.
    loss: that of the first step.
    codes: int[b l] of an encoding.
  """

  name: str
  what: str
  run: Callable[[int], Any]
  peak: Callable[[], int | None]
  loss: float | None = None
  codes: Any = None


def in_turn(sides: list[Side], rounds: int) -> list[list[float]]:
  """Seconds per repetition, of every side in every round, after two rounds that do not count."""
  counts = []
  for side in sides:
    side.run(1)
    began = time.perf_counter()
    side.run(1)
    counts.append(max(math.ceil(ROUND / (time.perf_counter() - began)), 1))
  seconds: list[list[float]] = [[] for _ in sides]
  for _ in range(rounds):
    for side, count, times in zip(sides, counts, seconds, strict=True):
      began = time.perf_counter()
      side.run(count)
      times.append((time.perf_counter() - began) / count)
  return seconds


def sides(stage: Stage, against: str, parts: int) -> list[Side]:
  """Ours, and torch's if it is asked for; to be called under the stage's mesh.

  Raises:
    UserError: a stage or a device on which torch has nothing to compare.
  """
  if not against:
    return [our_step(stage, *random_weights(stage), made_up(stage, segments=4))]
  on = jax.default_backend()
  if stage.config.task not in ("mllm", "ta_tok"):
    raise UserError(f"--against=torch compares mllm and ta_tok, not {stage.config.task}")
  if on not in ("cpu", "gpu") or (on == "gpu" and stage.mesh.size > 1):
    raise UserError(f"--against=torch compares on a CPU or one GPU, not on {stage.mesh.size} {on}")
  if stage.config.batch % parts:
    raise UserError(f"--torch-parts={parts} does not divide config.batch={stage.config.batch}")
  from tarjax import torch_side

  batch, (params, frozen) = made_up(stage, segments=1), random_weights(stage)
  on_host = jax.device_get(params), jax.device_get(frozen)  # a step takes the device's
  start = our_step if stage.config.task == "mllm" else our_encode
  ours: Side = start(stage, params, frozen, batch)
  return [ours, torch_side.make(stage, *on_host, batch, parts, cuda=on == "gpu")]


def flops(stage: Stage, against: str) -> float:
  """Operations of the products that both sides need; to be called without a mesh."""
  if not against or stage.config.task == "mllm":
    return stage.model_flops(dict(next(iter(stage.shares))))
  task: Any = stage.task
  params = merge(stage.layout.params, stage.layout.frozen)
  table = jax.ShapeDtypeStruct((task.net.codes, task.net.width), np.float32)
  run = functools.partial(encode, task.model)
  return traced_flops(run, {"params": params}, table, stage.batch()["image"])


def made_up(stage: Stage, segments: int) -> dict[str, np.ndarray]:
  """A batch of the stage's shapes: noise, and packed rows of so many equal segments."""
  rng, task = np.random.default_rng(stage.config.seed), stage.task
  config: Any = stage.config
  out = {}
  for name, like in stage.batch().items():
    match name.rstrip("123"):
      case "image":
        value = rng.integers(0, 256, like.shape)
      case "latent":
        value = rng.normal(size=like.shape)
      case "segments" | "positions":
        place = np.arange(like.shape[1])
        long = -(-like.shape[1] // segments)
        value = place // long + 1 if name == "segments" else place % long
        value = np.broadcast_to(value, like.shape)
      case "codes":
        value = rng.integers(0, config.ta_tok.codes, like.shape)
      case _:  # words
        used = getattr(task, "used", 0) or vocabulary(config.model)
        value = rng.integers(0, used, like.shape)
    out[name] = value.astype(like.dtype)
  if "labels" in out:
    out["labels"] = out["tokens"]
  return out


def vocabulary(model: Any) -> int:
  """`vocab` of a network's config, or of the part of it that reads text."""
  return model["vocab"] if "vocab" in model else model["text"]["vocab"]


def random_weights(stage: Stage) -> tuple[Any, Any]:
  """(params, frozen) on their devices."""
  places = jax.tree.map(lambda x: x.sharding, stage.layout)

  def init(key):
    one, two = jax.random.split(key)
    return nn.meta.unbox(stage.task.init(one)), nn.meta.unbox(stage.task.init_frozen(two))

  key = jax.random.key(stage.config.seed, impl="unsafe_rbg")  # on CPU, others take minutes
  return jax.jit(init, out_shardings=(places.params, places.frozen))(key)


def put(stage: Stage, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """A batch on the devices, as train has it."""
  return {name: jax.device_put(x, stage.batch()[name].sharding) for name, x in batch.items()}


def our_step(stage: Stage, params, frozen, batch: dict[str, np.ndarray]) -> Side:
  """The training step; it takes `params` over."""
  places = jax.tree.map(lambda x: x.sharding, stage.layout.opt)
  opt = jax.jit(stage.optimizer.init, out_shardings=places)(params)
  _, key = make_keys(stage.config.seed, stage.mesh)
  static = dict(next(iter(stage.shares)))
  program, _ = stage.programs()(True, static)
  state = TrainState(put_step(0, stage.mesh), params, opt)
  arguments = (frozen, put(stage, batch), key)
  compiled = program.lower(state, *arguments).compile()
  state, values = compiled(state, *arguments)

  def run(times: int) -> None:
    nonlocal state
    for _ in range(times):
      state, _ = compiled(state, *arguments)
    jax.block_until_ready(state)

  said = "".join(f" {name}={value}" for name, value in static.items())
  return Side(
    "tarjax",
    f"training step{said}, remat {stage.config.model.get('remat', 'none')}",
    run,
    lambda: peak_bytes(compiled),
    loss=float(values["loss"]),
  )


def encode(model: Any, variables, table, image):
  return model.apply(variables, pixels(image), 1, table, method="encode")


def our_encode(stage: Stage, params, frozen, batch: dict[str, np.ndarray]) -> Side:
  """Pictures to codes at scale 1, with the codebook at hand."""
  task: Any = stage.task
  variables = {"params": merge(params, frozen)}
  table = jax.jit(lambda v: task.model.apply(v, method="codebook"))(variables)
  arguments = (variables, table, put(stage, batch)["image"])
  compiled = jax.jit(functools.partial(encode, task.model)).lower(*arguments).compile()
  codes = np.asarray(compiled(*arguments))

  def run(times: int) -> None:
    for _ in range(times):
      out = compiled(*arguments)
    jax.block_until_ready(out)

  what = "encoding to codes at scale 1"
  return Side("tarjax", what, run, lambda: peak_bytes(compiled), codes=codes)


def peak_bytes(compiled: Any) -> int | None:
  """What was in use at most on the first device; where nobody counts, what the program needs."""
  if stats := jax.local_devices()[0].memory_stats():
    return stats.get("peak_bytes_in_use")
  need = compiled.memory_analysis()
  return need and (
    need.argument_size_in_bytes
    + need.output_size_in_bytes
    - need.alias_size_in_bytes
    + need.temp_size_in_bytes
  )
