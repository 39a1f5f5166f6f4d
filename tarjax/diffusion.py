"""Flow matching: noise levels and times in training, sampling plans, guidance, one sampling loop.

A sample at noise level sigma is (1 - sigma) x + sigma noise, and the network's target is its
velocity, noise - x. A shift above 1 spends more of the way at high noise (arXiv 2403.03206).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
TRAIN_STEPS = 1000  # of the grid of times that networks are trained on


def shifted(sigma: Any, shift: Any) -> Any:
  """Noise levels in [0, 1] -> higher ones, with both ends in place."""
  return shift * sigma / (1 + (shift - 1) * sigma)


# --- training -------------------------------------------------------------------------------------


def train_table(shift: float, steps: int = TRAIN_STEPS) -> tuple[np.ndarray, np.ndarray]:
  """Shifted noise levels and the times fed for them, float32[steps] each (SANA's training).

  Times are whole numbers, rounded down, as the samplers of `dpm_plan` feed them.
  """
  sigmas = shifted(np.arange(steps) / steps, shift)
  times = np.floor(sigmas * steps + 1e-6)  # whole numbers stay whole
  return sigmas.astype(np.float32), times.astype(np.float32)


def draw_sigmas(rng: Array, count: int, shift: float) -> tuple[Array, Array]:
  """Noise levels and times of a training batch, float32[b] each: logit-normal on the grid."""
  sigmas, times = train_table(shift)
  place = jnp.floor(TRAIN_STEPS * jax.nn.sigmoid(jax.random.normal(rng, (count,))))
  place = jnp.minimum(place.astype(jnp.int32), TRAIN_STEPS - 1)
  return jnp.asarray(sigmas)[place], jnp.asarray(times)[place]


def add_noise(latents: Array, noise: Array, sigmas: Array) -> tuple[Array, Array]:
  """float32[b y x c] twice and float32[b] -> (noisy latents, target velocity)."""
  sigmas = sigmas[:, None, None, None]
  return (1 - sigmas) * latents + sigmas * noise, noise - latents


# --- sampling -------------------------------------------------------------------------------------


class Plan(NamedTuple):
  """A sampling loop of n steps, as numbers.

  With the data prediction D_k = x_k - sigma_k v_k, every solver here is one linear step,
  x_{k+1} = a_k x_k + b_k D_k + c_k D_{k-1}.
  """

  times: Any  # float32[n], fed to the network
  sigmas: Any  # float32[n+1], the last is 0
  weights: Any  # float32[n 3]: a, b, c


def dpm_plan(
  steps: int, shift: float = 3.0, train_steps: int = TRAIN_STEPS, order: int = 2
) -> Plan:
  """DPM-Solver++ with the midpoint rule (arXiv 2211.01095), on flow sigmas.

  The first step and the last are of first order. Times are whole numbers, rounded down.

  Raises:
    ValueError: no steps, or an order that is neither 1 nor 2.
  """
  if steps < 1 or order not in (1, 2):
    raise ValueError(f"steps={steps} must be at least 1 and order={order} 1 or 2")
  sigmas = shifted(1 - np.linspace(1, 1 / train_steps, steps + 1), shift)[:0:-1]
  times = np.trunc(sigmas * train_steps).astype(np.float32)
  sigmas = np.append(sigmas, 0).astype(np.float32)
  weights = first_order(sigmas)
  s = sigmas.astype(np.float64)
  with np.errstate(divide="ignore"):
    length = np.diff(np.log(1 - s) - np.log(s))  # of each step, in log signal-to-noise
  for k in range(1, steps - 1) if order == 2 else ():
    ratio = length[k - 1] / length[k]
    push = weights[k, 1] / (2 * ratio)
    weights[k, 1:] += push, -push
  return Plan(times, sigmas, weights.astype(np.float32))


def euler_plan(steps: int, shift: float = 3.0, train_steps: int = TRAIN_STEPS) -> Plan:
  """Flow-match Euler as diffusers runs it: shifted twice, and times that are not rounded.

  The levels are spaced evenly between the ends of a training grid that is shifted already, and
  then shifted once more.

  Raises:
    ValueError: no steps.
  """
  if steps < 1:
    raise ValueError(f"steps={steps} must be at least 1")
  grid = np.arange(1, train_steps + 1, dtype=np.float32) / np.float32(train_steps)
  low, high = shifted(grid[[0, -1]], np.float32(shift)).astype(np.float64)
  sigmas = shifted(np.linspace(high, low, steps), shift).astype(np.float32)
  times = sigmas * np.float32(train_steps)
  sigmas = np.append(sigmas, np.float32(0))
  return Plan(times, sigmas, first_order(sigmas).astype(np.float32))


def first_order(sigmas: np.ndarray) -> np.ndarray:
  """Weights of the first-order steps between noise levels float[n+1], float64[n 3]."""
  kept = sigmas[1:].astype(np.float64) / sigmas[:-1]
  return np.stack([kept, 1 - kept, np.zeros_like(kept)], 1)


def sample(
  velocity: Callable[..., Any],
  noise: Array,
  plan: Plan,
  cond: Any,
  null: Any = None,
  scale: float = 1.0,
) -> tuple[Array, Array]:
  """Runs a plan from noise to latents; trace it under jit, with `scale` static.

  Args:
    velocity: (x float32[b y x c], times float32[b], cond, mask bool[b s]) -> float32[b y x c'];
      of more channels than x has, the first are taken.
    noise: float32[b y x c].
    plan: of `dpm_plan` or `euler_plan`.
    cond: float[b s w].
    null: the condition that says nothing, float[b s' w]; needed if scale > 1.
    scale: guidance, null + scale * (cond - null); 1 and less is without.

  Returns:
    The last latents float32[b y x c], and those after every step, float32[n b y x c].
  """
  both, mask = (cond, None) if scale <= 1 else join(jnp.asarray(null), jnp.asarray(cond))

  def step(carry, k):
    x, before = carry
    time, sigma, weight = k
    fed = x if scale <= 1 else jnp.concatenate([x, x])
    v = velocity(fed, jnp.full((len(fed),), time), both, mask)[..., : x.shape[-1]]
    if scale > 1:
      without, given = jnp.split(v, 2)
      v = without + scale * (given - without)
    data = x - sigma * v
    x = weight[0] * x + weight[1] * data + weight[2] * before
    return (x, data), x

  table = (jnp.asarray(plan.times), jnp.asarray(plan.sigmas[:-1]), jnp.asarray(plan.weights))
  (x, _), trace = jax.lax.scan(step, (noise, jnp.zeros_like(noise)), table)
  return x, trace


def join(null: Array, cond: Array) -> tuple[Array, Array]:
  """Both conditions as one batch, null first, and the mask of its tokens: the shorter is padded."""
  length = max(null.shape[1], cond.shape[1])
  parts = [jnp.pad(c, ((0, 0), (0, length - c.shape[1]), (0, 0))) for c in (null, cond)]
  seen = [jnp.arange(length) < c.shape[1] for c in (null, cond)]
  mask = [jnp.broadcast_to(m, (len(null), length)) for m in seen]
  return jnp.concatenate(parts), jnp.concatenate(mask)
