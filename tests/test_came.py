"""CAME against published numbers and against itself in other layouts (test_parity.py: records)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tarjax.came import as_matrices, came
from tarjax.convert.came import from_params, to_params
from tests import golden


def trajectory(gradients, **options):
  """Gradients of each step, a list of trees -> steps / -lr of each, as trees."""
  optimizer = came(1.0, **options)
  state, found = optimizer.init(gradients[0]), []
  update = jax.jit(optimizer.update)
  for g in gradients:
    steps, state = update(g, state, g)
    found.append(jax.tree.map(lambda s: -s, steps))
  return found


def test_published_sizes_of_the_first_steps():
  optimizer = came(1.0)
  params = {"kernel": jnp.zeros((64, 48))}

  def one(state, key):
    updates, state = optimizer.update({"kernel": jax.random.normal(key, (64, 48))}, state, params)
    return state, jnp.sqrt(jnp.square(updates["kernel"]).mean())

  keys = jax.random.split(jax.random.key(0), 1000)
  _, rms = jax.jit(lambda s: jax.lax.scan(one, s, keys))(optimizer.init(params))
  assert float(rms[0]) == pytest.approx(11.11, abs=1e-2)
  for step, size in ((2, 10.76), (10, 7.28), (100, 2.52), (1000, 0.80)):
    assert float(rms[step - 1]) == pytest.approx(size, rel=0.03), step


def test_layers_and_heads_do_not_change_a_step():
  """Scanned kernels with heads move as the matrices of the original do, one by one."""
  rng = np.random.default_rng(0)
  n, d, h, k = 3, 6, 2, 4
  shapes = {"q": (n, d, h, k), "out": (n, h, k, d)}
  scale = np.float32([1, 50, 0.1])[:, None, None, None]  # a layer's clip is its own
  kernels = [{m: scale * rng.normal(size=s) for m, s in shapes.items()} for _ in range(4)]
  biases = [scale[:, 0] * rng.normal(size=(n, h, k)) for _ in range(4)]
  layered, single = [], []
  for kernel, bias in zip(kernels, biases, strict=True):
    tree = {m: {"kernel": jnp.float32(g)} for m, g in kernel.items()}
    tree["q"]["bias"] = jnp.float32(bias)
    layered.append({"blocks": tree})
    flat = {}
    for i in range(n):
      flat[f"q{i}"] = {"kernel": jnp.float32(kernel["q"][i].reshape(d, h * k))}
      flat[f"q{i}"]["bias"] = jnp.float32(bias[i].reshape(-1))
      flat[f"out{i}"] = {"kernel": jnp.float32(kernel["out"][i].reshape(h * k, d))}
    single.append(flat)
  for got, want in zip(trajectory(layered), trajectory(single), strict=True):
    for i in range(n):
      for m in ("q", "out"):
        kernel = want[f"{m}{i}"]["kernel"]
        golden.close(got["blocks"][m]["kernel"][i].reshape(kernel.shape), kernel, 1e-6)
      golden.close(got["blocks"]["q"]["bias"][i].reshape(-1), want[f"q{i}"]["bias"], 1e-6)


def test_what_is_a_matrix():
  def of(name, *shape):
    return as_matrices(tuple(jax.tree_util.DictKey(part) for part in name.split("/")), shape)

  assert of("patch/kernel", 32, 1152) == (1, 32, 1152)
  assert of("modulation/kernel", 1152, 6, 1152) == (1, 1152, 6912)
  assert of("blocks/cross/k/kernel", 28, 1152, 16, 72) == (28, 1152, 1152)
  assert of("blocks/cross/out/kernel", 28, 16, 72, 1152) == (28, 1152, 1152)
  assert of("blocks/table", 28, 6, 1152) == (28, 6, 1152)
  assert of("blocks/cross/q/bias", 28, 16, 72) is None
  assert of("blocks/mlp/depth/kernel", 28, 3, 3, 1, 5760) is None
  assert of("encoder/conv_in/kernel", 3, 3, 3, 128) is None
  assert of("cond/norm/scale", 1152) is None


def test_decay_comes_with_the_rate_and_zero_gradients_are_finite():
  params = {"a": {"kernel": jnp.full((4, 3), 2.0), "bias": jnp.full(3, 2.0)}}
  optimizer = came(0.1, weight_decay=0.5, mask={"a": {"kernel": True, "bias": False}})
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zero, optimizer.init(params), params)
  moved = optax.apply_updates(params, updates)
  np.testing.assert_allclose(moved["a"]["kernel"], 1.9, rtol=1e-6)
  np.testing.assert_allclose(moved["a"]["bias"], 2.0)


def test_names_of_the_original_go_there_and_back():
  tensors = {"net.0.weight": np.ones((2, 3)), "net.0.bias": np.ones(2), "norm.weight": np.ones(3)}
  params = to_params(tensors)
  assert params["net.0"]["kernel"].shape == (3, 2)
  back = from_params(params)
  assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in tensors.items()}
