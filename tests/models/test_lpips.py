"""LPIPS and the PatchGAN discriminator against the same networks built of torch's layers."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tarjax.models import lpips, patchgan
from tarjax.sharding import make_mesh, tree_shardings
from tests import golden
from tests import perceptual as original

WIDTHS = (4, 6, 8, 8, 10)
MODEL = lpips.Lpips(lpips.LpipsConfig(WIDTHS))
HURRY = {"xla_backend_optimization_level": 0}  # compiling takes most of the time


def pictures(seed, *shape):
  return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def nchw(x):
  return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def metric():
  """(the original, its weights as ours)."""
  made = original.make_lpips(WIDTHS)
  return made, original.lpips_params(made)


@functools.partial(jax.jit, compiler_options=HURRY)
def distances(params, a, b):
  """((sum, each), gradient for a)."""

  def total(a):
    each: Any = MODEL.apply({"params": params}, a, b)
    return each.sum(), each

  return jax.value_and_grad(total, has_aux=True)(a)


def test_lpips_is_the_original(metric):
  """Value and gradient, of pictures whose sides are no multiples of the pools."""
  made, params = metric
  a, b = pictures(0, 3, 37, 20, 3), pictures(1, 3, 37, 20, 3)
  (_, each), grad = distances(params, a, b)
  x = nchw(a).requires_grad_()
  want = made(x, nchw(b))
  want.sum().backward()
  np.testing.assert_allclose(each, want.detach().numpy(), rtol=1e-5)
  assert x.grad is not None
  golden.close(grad, x.grad.numpy().transpose(0, 2, 3, 1), 1e-4)  # through 13 layers and back


def test_lpips_without_features_and_of_the_same_picture(metric):
  """Features that are all zero, which have no direction, give no NaN; a picture is like itself."""
  a, b = pictures(0, 3, 37, 20, 3), pictures(1, 3, 37, 20, 3)
  (value, _), grad = distances(jax.tree.map(np.zeros_like, metric[1]), a, b)
  assert value == 0 and np.isfinite(grad).all()
  assert distances(metric[1], a, a)[0][0] == 0


def test_published_lpips_has_vgg16s_weights():
  x = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  model = lpips.Lpips(lpips.LpipsConfig())
  shapes = jax.eval_shape(model.init, jax.random.key(0), x, x)
  assert sum(x.size for x in jax.tree.leaves(shapes)) == 14_714_688 + 1472


def test_sizes_that_do_not_fit():
  x = jnp.zeros((1, 15, 32, 3))
  with pytest.raises(ValueError, match="16 pixels a side or more, not .15, 32."):
    MODEL.init(jax.random.key(0), x, x)
  with pytest.raises(ValueError, match="5 stages, but there are 2 widths"):
    lpips.LpipsConfig((4, 4))
  net = patchgan.PatchGan(patchgan.PatchGanConfig(4, 3))
  with pytest.raises(ValueError, match="15 x 32 pixels are too small .* needs 24 a side"):
    net.init(jax.random.key(0), x)


@pytest.mark.parametrize("layers", [1, 4])
def test_patchgan_is_the_original(layers):
  """Logits, and gradients of the weights and the picture, in training mode."""
  size = 3 * 2**layers
  net = patchgan.PatchGan(patchgan.PatchGanConfig(4, layers))
  made = original.make_patchgan(4, layers)
  params = original.patchgan_params(made)
  x = pictures(2, 3, size + 5, size, 3)
  t = nchw(x).requires_grad_()
  want = made(t)[:, 0]
  weight = np.random.default_rng(3).normal(size=want.shape).astype(np.float32)
  (want * torch.tensor(weight)).sum().backward()

  @functools.partial(jax.jit, compiler_options=HURRY)
  @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
  def gradients(params, x):
    logits = net.apply({"params": params}, x)
    return (logits * weight).sum(), logits

  grads, logits = gradients(params, x)
  np.testing.assert_allclose(logits, want.detach().numpy(), rtol=1e-5, atol=1e-5)
  assert t.grad is not None
  golden.close(grads[1], t.grad.numpy().transpose(0, 2, 3, 1), 1e-4)
  wanted = original.patchgan_params(made, lambda p: p.grad)
  for part in wanted:
    for name, value in wanted[part].items():
      golden.close(grads[0][part][name], value, 1e-4)


def test_patchgan_starts_as_the_original_and_has_its_size():
  net = patchgan.PatchGan(patchgan.PatchGanConfig())
  boxed = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
  assert sum(x.size for x in jax.tree.leaves(boxed)) == 2_765_633  # of pix2pix's, with 70 pixels
  tree_shardings(boxed, make_mesh({"data": 2, "fsdp": 2, "model": 2}))
  net = patchgan.PatchGan(patchgan.PatchGanConfig(32, 2))
  params = jax.jit(net.init, compiler_options=HURRY)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))[
    "params"
  ]
  params = jax.tree.map(np.asarray, nn.meta.unbox(params))
  assert params["conv1"]["kernel"].std() == pytest.approx(0.02, rel=0.05)
  assert params["conv1"]["kernel"].mean() == pytest.approx(0, abs=1e-3)
  assert params["norm1"]["scale"].mean() == pytest.approx(1, abs=0.01)
  assert params["norm1"]["scale"].std() == pytest.approx(0.02, rel=0.4)
  assert not params["norm1"]["bias"].any() and "bias" not in params["conv1"]
