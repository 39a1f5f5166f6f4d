"""Optimizers: clip by global norm, AdamW, CAME or Muon, decay on matrices only, learning rates.

Decay applies to parameters whose name ends in `kernel`: the weights of `Linear` and `Conv`. It
leaves out biases, norm scales, position tables, embeddings, codebooks and learned queries, also
where stacked layers give them two dimensions (the rule of TA-Tok's and AR-DTok's trainers). Frozen
networks are not among the parameters at all.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from tarjax.came import came
from tarjax.config import UserError

DECAYED = ("kernel",)
JUDGE = "discriminator"  # the parameters that have their own loss, see `adversarial`
# Restarts of dead codes: the weight of the past in a code's share of use, the share below which it
# is dead, how far from its model it lands (relative to that one's length), and for how long.
MEMORY, DEAD, APART, RESTARTS = 0.98, 0.05, 0.1, 0.7
ADAMS_SIZE = 0.2  # root mean square of Muon's updates: one learning rate then serves it and Adam


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

  A discriminator's, which are of another loss, are clipped apart, see `clip_networks`, and what
  `config.discriminator` has (lr, b1, b2, ...) is for its parameters in the place of the rest's.

  With `restart_codes` = e, the number of rows of the parameter "codebook", dead rows are restarted
  during the first 70% of the steps. With `ema`, the state keeps an average of the parameters in
  which the past weighs so much.

  Raises:
    UserError: an unknown optimizer or schedule, or an average that is none.
  """
  optimizer = update_rule(config, steps)
  if own := config.get("discriminator"):
    judge = update_rule(SimpleNamespace(**{**config.to_dict(), **own}), steps)
    optimizer = optax.partition({JUDGE: judge, "others": optimizer}, networks)
  if config.clip:
    optimizer = optax.chain(clip_networks(config.clip), optimizer)
  if codes := config.get("restart_codes", 0):
    optimizer = restart_dead_codes(optimizer, codes, int(RESTARTS * steps))
  if ema := config.get("ema", 0.0):
    if not 0 < ema < 1:
      raise UserError(f"config.optim.ema={ema} must be between 0 and 1")
    optimizer = optax.chain(optimizer, keep_average(ema))
  return optimizer


def update_rule(config, steps: int) -> optax.GradientTransformation:
  """The optimizer that `config.name` names, with its schedule; errors as `make_optimizer`."""
  schedule = make_schedule(config, steps)
  make: dict[str, Any] = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
  make |= {"weight_decay": config.weight_decay, "mask": decay_mask}
  if config.name == "adamw":
    return optax.adamw(schedule, **make)
  if config.name == "came":
    return came(schedule, b3=config.b3, **make)
  if config.name == "muon":
    return muon_nadam(schedule, **make)
  raise UserError(f"config.optim.name={config.name!r} is none of ['adamw', 'came', 'muon']")


def networks(params):
  """Tree of labels: which parameters are the discriminator's."""

  def network(path, _):
    return JUDGE if path[0].key == JUDGE else "others"

  return jax.tree_util.tree_map_with_path(network, params)


def clip_networks(norm: float) -> optax.GradientTransformation:
  """Clips by global norm; those of the subtree "discriminator", if there is one, by their own."""
  clip: Any = optax.clip_by_global_norm(norm)

  def update(updates: Any, state, params=None):
    apart = {k: {k: x} for k, x in updates.items() if k == JUDGE}
    rest = {k: x for k, x in updates.items() if k != JUDGE}
    clipped = [clip.update(part, state)[0] for part in (rest, *apart.values())]
    return {k: x for part in clipped for k, x in part.items()}, state

  return optax.GradientTransformation(clip.init, update)


def muon_nadam(schedule, b1, b2, eps, weight_decay, mask) -> optax.GradientTransformation:
  """Muon on the matrices of blocks, whose heads are one matrix, and NAdam on everything else.

  Updates of matrices are orthogonalized and have the size of Adam's (arXiv 2502.16982, Sec. 2.2).
  """
  direction = muon(
    1.0,
    adam_b1=b1,
    adam_b2=b2,
    eps=eps,
    muon_weight_dimension_numbers=matrices,
    consistent_rms=ADAMS_SIZE,
  )  # towards lower loss, as the decay below
  decay = optax.add_decayed_weights(-weight_decay, mask)
  return optax.chain(direction, decay, optax.scale_by_schedule(schedule))


def matrices(params):
  """Which axes of a kernel of stacked blocks are a matrix; None for what is no such kernel."""

  def matrix(path, x):
    names = [key.key for key in path]
    if names[-1] not in DECAYED or "blocks" not in names:
      return None
    inputs = x.ndim - 2 if names[-2] == "out" else 1  # [n d h k] of queries, [n h k d] of out
    return MuonDimensionNumbers(tuple(range(1, 1 + inputs)), tuple(range(1 + inputs, x.ndim)))

  return jax.tree_util.tree_map_with_path(matrix, params)


class Average(NamedTuple):
  params: Any


def keep_average(decay: float) -> optax.GradientTransformation:
  """Changes no update; its state is a moving average of the parameters after them."""

  def init(params):
    return Average(jax.tree.map(jnp.copy, params))

  def update(updates, state, params: Any = None):
    new = optax.apply_updates(params, updates)
    return updates, Average(jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), state.params, new))

  return optax.GradientTransformation(init, update)


def averaged(opt, params):
  """The average of the parameters that an optimizer's state holds, or `params` if it holds none."""
  parts = jax.tree.leaves(opt, is_leaf=lambda x: isinstance(x, Average))
  return next((part.params for part in parts if isinstance(part, Average)), params)


class RestartState(NamedTuple):
  step: Any  # int32[]
  use: Any  # float32[e], share of the recent steps in which a code was chosen
  error: Any  # float32[e], mean square of its gradient
  inner: Any


def restart_dead_codes(inner, codes: int, until: int) -> optax.GradientTransformation:
  """Moves codes that are not chosen any more beside codes that are.

  A plain vector quantiser that starts at random keeps a few percent of its codes (31 of 1,024 on
  the laptop). A code that nothing chose has a gradient of exactly zero, so use can be read off the
  gradient. A dead row becomes a copy, with a little noise, of another: the two then share what the
  one stood for. That other is drawn in proportion to the mean square of its gradient, which is that
  of the error of all it stands for, as k-means++ draws centres. Drawn by use, rows that stand for
  the ground of all pictures without any error would be split again and again.

  Args:
    inner: the optimizer of all parameters.
    codes: rows of the one parameter named "codebook".
    until: the update from which no code is moved any more.
  """

  def init(params):
    return RestartState(
      jnp.zeros((), jnp.int32), jnp.ones(codes), jnp.ones(codes), inner.init(params)
    )

  def update(updates, state, params=None):
    gradient = codebook(updates)
    chosen = (gradient != 0).any(1)
    updates, opt = inner.update(updates, state.inner, params)
    use = MEMORY * state.use + (1 - MEMORY) * chosen
    error = MEMORY * state.error + (1 - MEMORY) * jnp.square(gradient).sum(1)
    dead = (use < DEAD) & (state.step < until)
    table, (draw, noise) = codebook(params), jax.random.split(jax.random.key(state.step))
    model = table[jax.random.choice(draw, codes, (codes,), p=jnp.where(dead, 0.0, error))]  # [e d]
    length = jnp.linalg.norm(model, axis=1, keepdims=True) / table.shape[1] ** 0.5
    moved = model + APART * length * jax.random.normal(noise, table.shape)

    def replace(path, x):
      return jnp.where(dead[:, None], moved - table, x) if is_codebook(path) else x

    updates = jax.tree_util.tree_map_with_path(replace, updates)
    fresh = jnp.where(dead, 1.0, use), jnp.where(dead, 0.0, error)
    return updates, RestartState(state.step + 1, *fresh, opt)

  def is_codebook(path) -> bool:
    return path[-1].key == "codebook"

  def codebook(tree):
    found = [x for path, x in jax.tree_util.tree_leaves_with_path(tree) if is_codebook(path)]
    if [len(x) for x in found] != [codes]:
      sizes = [x.shape for x in found]
      raise UserError(f"optim.restart_codes={codes}, but the parameters named codebook are {sizes}")
    return found[0]

  return optax.GradientTransformation(init, update)


def opt_shardings(optimizer, params, shardings, other):
  """Abstract optimizer state and its shardings: moments like their parameters, `other` elsewhere.

  Args:
    optimizer: from `make_optimizer`.
    params: abstract parameters.
    shardings: matching tree of NamedSharding.
    other: the sharding of counters and of what is smaller than its parameter.
  """
  state = jax.eval_shape(optimizer.init, params)
  named, spots = jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings)
  places = {path: (x.shape, spot) for (path, x), spot in zip(named, spots, strict=True)}

  def place(path, x):
    """A moment's path ends like its parameter's."""
    for start in range(len(path)):
      shape, spot = places.get(path[start:], (None, other))
      if shape == x.shape:
        return spot
    return other

  return state, jax.tree_util.tree_map_with_path(place, state)
