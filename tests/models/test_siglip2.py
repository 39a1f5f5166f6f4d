"""The towers on their own: shapes of parameters, grids, masks, initial values."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarjax.models.siglip2 import (
  NaFlexConfig,
  NaFlexTower,
  Siglip2,
  TextConfig,
  TextTower,
  VisionConfig,
  VisionTower,
  resize_positions,
)
from tests.golden import close, random_params

VISION = VisionConfig(width=32, depth=2, heads=4, mlp=64, image=22, patch=7)
TEXT = TextConfig(vocab=50, width=24, depth=2, heads=3, mlp=40, length=9, out=32)
NAFLEX = NaFlexConfig(channels=10, width=24, depth=2, heads=4, mlp=48, positions=16)


def init(module, *args):
  return nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), *args)["params"])


def run(module, params, *args, **static):
  return jax.jit(functools.partial(module.apply, **static))({"params": params}, *args)


def images(seed=1, side=22):
  return jax.random.uniform(jax.random.key(seed), (2, side, side, 3), minval=-1)


def test_fewer_blocks_give_that_hidden_state():
  params = random_params(VisionTower(VISION), images())
  _, _, states = run(VisionTower(VISION), params, images(), collect=True)
  short = VisionTower(VISION, blocks=1, post_norm=False, head=False)
  own = random_params(short, images())
  assert set(own) == {"patch", "position", "blocks"}
  assert own["blocks"]["norm1"]["scale"].shape == (1, 32)
  cut = {k: params[k] for k in ("patch", "position")}
  cut["blocks"] = jax.tree.map(lambda x: x[:1], params["blocks"])
  last, pooled, none = run(short, cut, images())
  assert pooled is None and none is None
  close(last, states[1], 1e-5)


def test_pixels_beyond_the_last_whole_patch_are_not_seen():
  params = random_params(VisionTower(VISION), images())
  changed = images().at[:, 21:].set(0).at[:, :, 21:].set(0)
  first = run(VisionTower(VISION), params, images())[1]
  second = run(VisionTower(VISION), params, changed)[1]
  np.testing.assert_array_equal(first, second)
  with pytest.raises(ValueError, match="22 x 22"):
    run(VisionTower(VISION), params, images(side=28))


def test_remat_and_bfloat16_keep_the_function():
  params = random_params(VisionTower(VISION), images())

  def grads(cfg):
    tree = jax.jit(jax.grad(lambda p: run(VisionTower(cfg), p, images())[1].sum()))(params)
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])

  plain, again = grads(VISION), grads(dataclasses.replace(VISION, remat="nothing_saveable"))
  close(plain, again)
  half = dataclasses.replace(VISION, dtype="bfloat16")
  got = run(VisionTower(half), params, images())[1]
  assert got.dtype == jnp.bfloat16
  want = run(VisionTower(VISION), params, images())[1]
  close(got.astype(jnp.float32), want, 0.1)


def test_initial_values():
  wide = dataclasses.replace(VISION, width=128, depth=1)
  params = init(Siglip2(wide, TEXT), images(), jnp.zeros((1, 9), jnp.int32))
  assert set(params) == {"vision", "text", "logit_scale", "logit_bias"}
  assert params["logit_scale"] == pytest.approx(np.log(10))
  assert params["logit_bias"] == -10
  params = params["vision"]
  std = {k: v.std() for k, v in params["blocks"]["attn"]["q"].items()}
  assert std["kernel"] == pytest.approx((2 / (128 + 128)) ** 0.5, rel=0.02)
  assert std["bias"] == 0
  assert params["position"].std() == pytest.approx(128**-0.5, rel=0.1)
  assert 0 < params["blocks"]["mlp"]["fc1"]["bias"].std() < 2e-6


def test_embeddings_have_unit_length():
  ids = jax.random.randint(jax.random.key(2), (3, 9), 0, 50)
  model = Siglip2(VISION, TEXT)
  params = random_params(model, images(), ids)
  image, text, _, _ = run(model, params, images(), ids)
  assert image.shape == (2, 32) and text.shape == (3, 32)
  np.testing.assert_allclose(jnp.linalg.norm(image, axis=-1), 1, rtol=1e-5)
  np.testing.assert_allclose(jnp.linalg.norm(text, axis=-1), 1, rtol=1e-5)


def test_text_is_pooled_at_the_last_position_and_has_a_limit():
  ids = jax.random.randint(jax.random.key(2), (2, 6), 0, 50)
  params = random_params(TextTower(TEXT), ids)
  last, pooled, _ = run(TextTower(TEXT), params, ids)
  want = last[:, -1] @ params["head"]["kernel"] + params["head"]["bias"]
  close(pooled, want, 1e-5)
  with pytest.raises(ValueError, match="10 text tokens"):
    run(TextTower(TEXT), params, jnp.zeros((1, 10), jnp.int32))


def test_naflex_square_grid_is_the_general_case():
  x = jax.random.normal(jax.random.key(3), (2, 9, 10))
  tower = NaFlexTower(NAFLEX)
  params = random_params(tower, x)
  fast = run(tower, params, x)
  slow = run(tower, params, x, mask=jnp.ones((2, 9), bool), grids=[(3, 3)] * 2)
  close(fast[0], slow[0], 1e-5)
  close(fast[1], slow[1], 1e-5)
  with pytest.raises(ValueError, match="8 tokens"):
    run(tower, params, x[:, :8])
  with pytest.raises(ValueError, match="9 wide"):
    run(tower, params, x[..., :9])


def test_naflex_padding_changes_nothing_seen():
  x = jax.random.normal(jax.random.key(3), (1, 6, 10))
  padded = jnp.pad(x, ((0, 0), (0, 4), (0, 0)), constant_values=7.0)
  tower = NaFlexTower(NAFLEX)
  params = random_params(tower, x[:, :4])
  whole = run(tower, params, x, grids=[(2, 3)])
  mask = jnp.arange(10)[None] < 6
  masked = run(tower, params, padded, mask=mask, grids=[(2, 3)])
  close(masked[0][:, :6], whole[0], 1e-5)
  close(masked[1], whole[1], 1e-5)


def test_resized_positions_fill_up_with_the_first():
  table = jax.random.normal(jax.random.key(4), (16, 5))
  rows = resize_positions(table, [(4, 4), (2, 3)], 16)
  np.testing.assert_array_equal(rows[0], table)
  np.testing.assert_array_equal(rows[1, 6:], jnp.broadcast_to(rows[1, 0], (10, 5)))
  with pytest.raises(ValueError, match="does not fit"):
    resize_positions(table, [(4, 5)], 16)
