"""Tokenizer and discriminator in one step, against torch's two optimizers that take turns."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from fake_stage import get_config
from torch import nn

from tarjax import adversarial, losses, optim
from tarjax.convert.rules import conv, flatten
from tarjax.models.layers import Conv
from tarjax.models.patchgan import PatchGan, PatchGanConfig
from tests import perceptual

CHANNELS, LAYERS, WEIGHT, LR, STEPS = 4, 1, 0.5, 2e-3, 4
CLIP = 0.2  # of each network's gradient, and less than it is
HURRY = {"xla_backend_optimization_level": 0}  # compiling takes most of the time
JUDGE: Any = PatchGan(PatchGanConfig(CHANNELS, LAYERS))


def batches():
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, (STEPS, 3, 8, 10, 3)).astype(np.float32)


class Tokenizer(nn.Module):
  """Two convolutions, which are all that matters of one here."""

  def __init__(self):
    super().__init__()
    self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)

  def forward(self, x):
    return self.last(torch.tanh(self.first(x)))


def params_of(module):
  layers = {"first": module.first, "last": module.last}
  array = lambda p: p.detach().numpy().copy()  # noqa: E731
  return {
    name: {"kernel": conv.there(array(x.weight)), "bias": array(x.bias)}
    for name, x in layers.items()
  }


def reconstruct(params, images, kernel=None):
  last = params["last"] if kernel is None else dict(params["last"], kernel=kernel)
  first, second = cast(Any, Conv(6)), cast(Any, Conv(3))
  return second.apply({"params": last}, jnp.tanh(first.apply({"params": params["first"]}, images)))


def take_turns(module, judge, adaptive, start):
  """The recipe with two optimizers; -> (losses of both, weights that were adapted)."""
  make = {"lr": LR, "betas": (0.9, 0.95), "weight_decay": 0.0}
  mine, its = (torch.optim.AdamW(net.parameters(), **make) for net in (module, judge))
  seen = []
  for step, images in enumerate(batches(), 1):
    x = torch.tensor(images.transpose(0, 3, 1, 2))
    weight = WEIGHT if step >= start else 0.0
    pictures = module(x)
    near = (pictures - x).square().mean()
    unreal, pull = -judge(pictures).mean(), torch.ones(())
    if adaptive:
      norms = [
        torch.autograd.grad(term, module.last.weight, retain_graph=True)[0].norm()
        for term in (near, unreal)
      ]
      pull = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
    total = near + pull * weight * unreal
    mine.zero_grad()
    total.backward()
    nn.utils.clip_grad_norm_(module.parameters(), CLIP)
    mine.step()
    its.zero_grad()
    real, fake = judge(x), judge(pictures.detach())
    hinge = 0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())
    (weight * hinge).backward()
    nn.utils.clip_grad_norm_(judge.parameters(), CLIP)
    its.step()
    seen.append([total.item(), weight * hinge.item(), pull.item()])
  return np.array(seen)


def one_step(adaptive, optimizer):
  """A jitted step of both networks -> (params, opt, loss, metrics)."""

  def loss(params, images, judged):
    def near(pictures):
      return losses.mse(pictures, images), {}

    def judge(params, pictures):
      return JUDGE.apply({"params": params}, pictures)

    def decode(kernel):
      return reconstruct(params, images, kernel)

    pictures, last = jax.vjp(decode, params["last"]["kernel"])
    if not judged:
      return near(pictures)
    make = {"weight": WEIGHT, "last": last if adaptive else None}
    return adversarial.loss(near, judge, params["discriminator"], pictures, images, **make)

  def step(params, opt, images, judged):
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, images, judged)
    updates, opt = optimizer.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, value, metrics

  return jax.jit(step, static_argnums=3, compiler_options=HURRY)


@pytest.mark.parametrize("adaptive, start", [(False, 0), (True, 3)])
def test_one_scalar_trains_as_two_optimizers(adaptive, start):
  torch.manual_seed(0)
  module, judge = Tokenizer(), perceptual.make_patchgan(CHANNELS, LAYERS)
  params = params_of(module) | {"discriminator": perceptual.patchgan_params(judge)}
  first = flatten(jax.tree.map(np.copy, params))
  changes = {"lr": LR, "clip": CLIP, "warmup": 0, "schedule": "constant", "b1": 0.9, "b2": 0.95}
  changes |= {"weight_decay": 0.0}
  optimizer = optim.make_optimizer(
    get_config({f"optim.{k}": v for k, v in changes.items()}).optim, 9
  )
  step, opt = one_step(adaptive, optimizer), optimizer.init(params)
  want = take_turns(module, judge, adaptive, start)
  for number, images in enumerate(batches(), 1):
    params, opt, value, metrics = step(params, opt, jnp.asarray(images), number >= start)
    np.testing.assert_allclose(value, want[number - 1, :2].sum(), rtol=2e-5)
    if number >= start:
      np.testing.assert_allclose(metrics["pull"], want[number - 1, 2], rtol=1e-4)
      assert set(metrics) == set(adversarial.METRICS)
  wanted = flatten(params_of(module) | {"discriminator": perceptual.patchgan_params(judge)})
  for name, got in flatten(params).items():
    moved = np.abs(wanted[name] - first[name]).max()
    assert moved > LR / 2, name  # or the test would be of nothing
    np.testing.assert_allclose(got, wanted[name], atol=0.01 * LR, err_msg=name)


def test_networks_are_clipped_apart():
  tx: Any = optim.clip_networks(1.0)
  grads = {"a": jnp.array([3.0, 4.0]), "discriminator": {"b": jnp.array([0.0, 0.5])}}
  clipped, _ = tx.update(grads, tx.init(grads))
  np.testing.assert_allclose(clipped["a"], [0.6, 0.8], rtol=1e-6)
  np.testing.assert_array_equal(clipped["discriminator"]["b"], [0.0, 0.5])
  whole, _ = tx.update({"a": grads["a"]}, tx.init(grads))
  plain: Any = optax.clip_by_global_norm(1.0)
  same, _ = plain.update({"a": grads["a"]}, optax.EmptyState())
  np.testing.assert_array_equal(whole["a"], same["a"])
