"""Optimizers: clip by global norm, AdamW or CAME with decay on matrices only, learning rates.

Decay applies to parameters whose name ends in `kernel`: the weights of `Linear` and `Conv`. It
leaves out biases, norm scales, position tables, embeddings, codebooks and learned queries, also
where stacked layers give them two dimensions (the rule of TA-Tok's and AR-DTok's trainers). Frozen
networks are not among the parameters at all.
"""

from typing import Any

import jax
import optax

from tarjax.came import came
from tarjax.config import UserError

DECAYED = ("kernel",)


def decay_mask(params):
  """Tree of bool: True where weight decay applies."""

  def decayed(path, _):
    return path[-1].key in DECAYED

  return jax.tree_util.tree_map_with_path(decayed, params)


def make_schedule(config, steps: int) -> optax.Schedule:
  """Update number -> learning rate.

  Linear warm-up over `config.warmup` updates, from `final * lr` under "cosine" (which ends there
  too) and from 0 under "constant".

  Raises:
    UserError: an unknown schedule, or a warm-up that is not shorter than the run.
  """
  if not 0 <= config.warmup < steps:
    raise UserError(f"config.optim.warmup={config.warmup} must be shorter than steps={steps}")
  if config.schedule == "cosine":
    floor = config.final * config.lr
    start = floor if config.warmup else config.lr
    return optax.warmup_cosine_decay_schedule(start, config.lr, config.warmup, steps, floor)
  if config.schedule == "constant":
    return optax.warmup_constant_schedule(
      0.0 if config.warmup else config.lr, config.lr, config.warmup
    )
  raise UserError(f"config.optim.schedule={config.schedule!r} is none of ['constant', 'cosine']")


def make_optimizer(config, steps: int) -> optax.GradientTransformation:
  """`config.optim` -> optax chain; gradients are clipped to global norm `clip` when it is > 0.

  Raises:
    UserError: an unknown optimizer or schedule.
  """
  schedule = make_schedule(config, steps)
  make: dict[str, Any] = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
  make |= {"weight_decay": config.weight_decay, "mask": decay_mask}
  if config.name == "adamw":
    optimizer = optax.adamw(schedule, **make)
  elif config.name == "came":
    optimizer = came(schedule, b3=config.b3, **make)
  else:
    raise UserError(f"config.optim.name={config.name!r} is none of ['adamw', 'came']")
  if not config.clip:
    return optimizer
  return optax.chain(optax.clip_by_global_norm(config.clip), optimizer)


def opt_shardings(optimizer, params, shardings, other):
  """Abstract optimizer state and its shardings: moments like their parameters, `other` elsewhere.

  Args:
    optimizer: from `make_optimizer`.
    params: abstract parameters.
    shardings: matching tree of NamedSharding.
    other: the sharding of counters and of what is smaller than its parameter.
  """
  state = jax.eval_shape(optimizer.init, params)
  return state, optax.tree_utils.tree_map_params(
    optimizer,
    lambda moment, param, sharding: sharding if moment.shape == param.shape else other,
    state,
    params,
    shardings,
    transform_non_params=lambda _: other,
  )
