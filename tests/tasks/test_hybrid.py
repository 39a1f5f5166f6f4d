"""The Hybrid representation's tokenizer learns pixels and text, and its losses add up."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_world import parse

from tarjax import tasks
from tarjax.data.digits import Digits

HURRY = {"xla_backend_optimization_level": 0}  # compiling takes most of the time


def digits_pairs(count, side, length):
  """The middles of pictures of digits, and their captions' words."""
  records = [Digits("caption", seed=1)[i] for i in range(count)]
  words, text = {}, np.zeros((count, length), np.int32)
  for row, record in zip(text, records, strict=True):
    ids = [words.setdefault(word, len(words) + 1) for word in record["caption"].split()[:length]]
    row[: len(ids)] = ids
  images = np.stack([record["images"][0] for record in records])
  at = (images.shape[1] - side) // 2
  return {"image": images[:, at : at + side, at : at + side], "text": text}


@pytest.fixture(scope="module")
def begun():
  """Config, parameters and a batch; no critics, which test_vqvae_recipe.py has."""
  config = parse("hybrid:tiny", ".", **{"model.dtype": "float32"})
  config.lpips.weight = config.gan.weight = 0.0
  task = tasks.make_task(config)
  init = jax.jit(task.init, compiler_options=HURRY)
  batch = digits_pairs(8, config.data.size, config.data.text_length)
  return config, nn.meta.unbox(init(jax.random.key(0))), batch


@pytest.fixture(scope="module")
def steps(begun):
  """[(loss, metrics)] of a few steps, and the first gradient."""
  config, params, batch = begun
  loss = functools.partial(tasks.make_task(config).loss, train=True)
  optimizer, found = optax.sgd(0.1, 0.9), []

  @functools.partial(jax.jit, compiler_options=HURRY)
  def step(params, opt, key):
    value, grads = jax.value_and_grad(loss, has_aux=True)(params, {}, batch, key)
    updates, opt = optimizer.update(grads, opt)
    return value, grads, optax.apply_updates(params, updates), opt

  opt = jax.jit(optimizer.init)(params)
  for number in range(20):
    value, grads, params, opt = step(params, opt, jax.random.key(number))
    found.append((value, grads))
  return [value for value, _ in found], found[0][1]


def test_a_few_steps_on_digits_lower_the_loss(steps):
  first, last = steps[0][0][1], steps[0][-1][1]
  for name in ("clip", "l2", "l1"):
    assert last[name] < 0.95 * first[name], name


def test_the_loss_is_the_weighed_sum_of_its_parts(begun, steps):
  (loss, m), grads = steps[0][0], steps[1]
  np.testing.assert_allclose(loss, 0.2 * m["l1"] + m["l2"] + m["vq"] + m["clip"], rtol=1e-5)
  assert m["scale"] == pytest.approx(1 / 0.07)
  assert m["psnr"] == pytest.approx(10 * math.log10(4 / m["l2"]))
  codes = np.asarray(m["codes"])  # of both sub-codebooks, each in its own range
  assert codes.shape == (8, 4, 2) and codes.max() < begun[0].model.codes == 128
  np.testing.assert_array_equal(codes // 64, np.broadcast_to([0, 1], codes.shape))
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    assert np.isfinite(grad).all() and (name.endswith("k/bias") or np.abs(grad).max() > 0), name


def test_lite_draws_what_its_tower_sees():
  config = parse("hybrid:tiny_lite", ".", **{"model.dtype": "float32", "model.encoder.image": 30})
  task = tasks.make_task(config)
  assert (task.net.drawn, task.net.tokens, task.static(10_000)) == (28, 49, {})
  batch = {"image": jnp.zeros((2, 30, 30, 3), jnp.uint8), "text": jnp.zeros((2, 8), jnp.int32)}
  params, frozen = (jax.eval_shape(f, jax.random.key(0)) for f in (task.init, task.init_frozen))
  run = functools.partial(task.loss, train=False)
  loss, metrics = jax.eval_shape(run, *nn.meta.unbox((params, frozen)), batch, jax.random.key(0))
  assert loss.shape == () and metrics["codes"].shape == (2, 49, 1)


def test_weights_are_all_named():
  config = parse("hybrid:tiny", ".")
  with config.unlocked():
    del config.weights["clip"]
  with pytest.raises(ValueError, match=r"weights has \['l1', 'l2', 'vq'\]; it needs"):
    tasks.make_task(config)
