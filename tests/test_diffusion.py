"""Noise levels, plans and the sampling loop against published numbers and diffusers' schedulers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from tarjax import diffusion
from tarjax.convert.dif_dtok import plan_from
from tests import golden

DPM = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def test_training_table():
  sigmas, times = diffusion.train_table(3.0)
  want = [0, 0.00299401, 0.02941176, 0.75, 0.99933244, 0.99966644]
  np.testing.assert_allclose(sigmas[[0, 1, 10, 500, 998, 999]], want, atol=5e-9, rtol=1e-6)
  assert times[[0, 1, 10, 500, 999]].tolist() == [0, 2, 29, 750, 999]


@pytest.mark.parametrize(
  "steps, first, last, times",
  [
    (20, [0.999666, 0.982420, 0.963941, 0.944094], [0.345888, 0.249792, 0.136240, 0], (249, 136)),
    (28, [0.999666, 0.987467, 0.974659, 0.961193], [0.264488, 0.187336, 0.099907, 0], (187, 99)),
  ],
)
def test_dpm_levels(steps, first, last, times):
  plan = diffusion.dpm_plan(steps)
  np.testing.assert_allclose(plan.sigmas[:4], first, atol=6e-7)
  np.testing.assert_allclose(plan.sigmas[-4:], last, atol=6e-7)
  assert plan.times[0] == 999 and tuple(plan.times[-2:]) == times


@pytest.mark.parametrize(
  "steps, first, last",
  [
    (20, [1.0, 0.981875, 0.962386, 0.941373], [0.266330, 0.149787, 0.008929, 0]),
    (28, [1.0, 0.987381, 0.974108], [0.199827, 0.110906, 0.008929, 0]),
  ],
)
def test_euler_levels(steps, first, last):
  sigmas = diffusion.euler_plan(steps).sigmas
  np.testing.assert_allclose(sigmas[: len(first)], first, atol=6e-7)
  np.testing.assert_allclose(sigmas[-4:], last, atol=6e-7)


def velocity(x, time, cond, mask=None):
  """A made-up network, curved in x and time."""
  wave = jnp.sin if isinstance(x, jax.Array) else torch.sin
  return wave(3 * x + time[:, None, None, None] / 300) - 0.3 * x + cond[:, :1, :1, None]


def diffusers_loop(scheduler, steps, noise, cond):
  """The same loop with a stock scheduler -> (scheduler, all latents)."""
  scheduler.set_timesteps(steps)
  x, trace = torch.tensor(noise), []
  for time in scheduler.timesteps:
    v = velocity(x, time[None].float(), torch.tensor(cond))
    x = scheduler.step(v, time, x, return_dict=False)[0]
    trace.append(x.numpy())
  return scheduler, np.stack(trace)


@pytest.mark.parametrize(
  "settings, steps",
  [
    (DPM, 1),
    (DPM, 2),
    (DPM, 28),
    (DPM | {"solver_order": 1}, 5),
    (DPM | {"flow_shift": 1.0, "lower_order_final": False}, 17),
    (DPM | {"num_train_timesteps": 500}, 6),
    ({"shift": 3.0}, 1),
    ({"shift": 3.0}, 28),
    ({"shift": 1.0, "num_train_timesteps": 500}, 7),
  ],
)
def test_loops_are_those_of_diffusers(settings, steps):
  rng = np.random.default_rng(0)
  noise, cond = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 4, 5), (2, 1, 1)))
  kind = (
    DPMSolverMultistepScheduler if "flow_shift" in settings else FlowMatchEulerDiscreteScheduler
  )
  scheduler, want = diffusers_loop(kind(**settings), steps, noise, cond)
  plan = plan_from(scheduler.config, steps)
  np.testing.assert_array_equal(plan.times, scheduler.timesteps.numpy())
  np.testing.assert_array_equal(plan.sigmas, scheduler.sigmas.numpy())
  last, trace = jax.jit(lambda: diffusion.sample(velocity, jnp.asarray(noise), plan, cond))()
  golden.close(trace, want, 1e-5)
  np.testing.assert_array_equal(last, trace[-1])


@pytest.mark.parametrize("plan", [diffusion.dpm_plan(6), diffusion.euler_plan(6)])
def test_a_straight_flow_ends_at_its_data(plan):
  x0, noise = jax.random.normal(jax.random.key(0), (2, 1, 2, 2, 3))

  def straight(x, time, cond, mask):  # the times fed here are the noise levels
    del cond, mask
    return (x - x0) / time[:, None, None, None]

  last, _ = diffusion.sample(straight, noise, plan._replace(times=plan.sigmas[:-1]), None)
  golden.close(last, x0, 1e-5)


def test_guidance_takes_null_first_and_pads_the_shorter():
  noise = jnp.ones((2, 1, 1, 1))
  cond, null = jnp.full((2, 2, 4), 3.0), jnp.full((2, 5, 4), 1.0)

  def mean(x, time, both, mask):
    assert both.shape == (4, 5, 4)
    kept = (both[..., 0] * mask).sum(1) / mask.sum(1)
    return jnp.zeros_like(x) + kept[:, None, None, None]

  plan = diffusion.Plan(np.float32([7]), np.float32([1, 0]), np.float32([[0, 1, 0]]))  # x - v
  last, _ = diffusion.sample(mean, noise, plan, cond, null, 4.0)
  np.testing.assert_allclose(last, 1 - (1 + 4 * (3 - 1)))
  last, _ = diffusion.sample(lambda x, *_: jnp.full_like(x, 3), noise, plan, cond, null, 1.0)
  np.testing.assert_allclose(last, 1 - 3)


def test_training_draws_are_logit_normal():
  sigmas, times = diffusion.draw_sigmas(jax.random.key(0), 40_000, 1.0)
  place = np.rint(np.asarray(sigmas) * 1000)
  normal = np.log((place + 0.5) / (999.5 - place))
  assert abs(normal.mean()) < 0.02 and abs(normal.std() - 1) < 0.02
  np.testing.assert_array_equal(times, place)
  shifted, _ = diffusion.draw_sigmas(jax.random.key(0), 40_000, 3.0)
  np.testing.assert_allclose(shifted, 3 * sigmas / (1 + 2 * sigmas), atol=1e-6)


def test_noise_and_its_target():
  x, noise = jnp.full((2, 1, 1, 1), 5.0), jnp.ones((2, 1, 1, 1))
  noisy, target = diffusion.add_noise(x, noise, jnp.asarray([0.0, 0.75]))
  np.testing.assert_allclose(noisy[:, 0, 0, 0], [5, 2])
  np.testing.assert_allclose(target, noise - x)


@pytest.mark.parametrize(
  "scheduler, words",
  [
    ({"solver_order": 3}, "solver_order=3"),
    ({"solver_order": 2, "solver_type": "heun"}, "solver_type='heun'"),
    ({"solver_order": 2, "use_karras_sigmas": True}, "use_karras_sigmas"),
    ({"shift": 3.0, "shift_terminal": 0.1}, "shift_terminal=0.1"),
  ],
)
def test_other_samplers_are_refused_by_name(scheduler, words):
  with pytest.raises(ValueError, match=words):
    plan_from(DPM | scheduler if "solver_order" in scheduler else scheduler, 4)


@pytest.mark.parametrize("make", [diffusion.dpm_plan, diffusion.euler_plan])
def test_no_steps(make):
  with pytest.raises(ValueError, match="steps=0"):
    make(0)
