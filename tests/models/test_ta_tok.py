"""The tokenizer on its own: pooling, entry points that must agree, gradients, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarjax.models.ta_tok import TaTok, TaTokConfig, pool
from tests.golden import close, random_params

CONFIG = TaTokConfig(
  encoder={"width": 24, "depth": 3, "heads": 3, "mlp": 40, "image": 36, "patch": 4},  # type: ignore[arg-type]
  decoder={"depth": 1, "heads": 4, "mlp": 40, "positions": 16},  # type: ignore[arg-type]
  codes=64,
  width=16,
)


@pytest.fixture(scope="module")
def params():
  return random_params(TaTok(CONFIG), images())


def images(side=36):
  return jax.random.uniform(jax.random.key(1), (2, side, side, 3), minval=-1)


def run(params, method, *args, **static):
  """A method under jit; keyword arguments are static."""
  apply = functools.partial(TaTok(CONFIG).apply, method=method, **static)
  return jax.jit(apply)({"params": params}, *args)


def test_pooling_drops_the_remainder():
  x = np.arange(81.0).reshape(1, 81, 1)
  grid = x.reshape(9, 9)
  np.testing.assert_array_equal(pool(x, 1), x)
  two = pool(jnp.asarray(x), 2).reshape(4, 4)
  assert two[0, 0] == grid[:2, :2].mean() and two[3, 3] == grid[6:8, 6:8].mean()
  assert pool(jnp.asarray(x), 3).reshape(3, 3)[1, 2] == grid[3:6, 6:9].mean()
  assert [CONFIG.tokens(s) for s in (1, 2, 3)] == [81, 16, 9]
  for tokens, scale in [(80, 1), (81, 10), (81, 0)]:
    with pytest.raises(ValueError):
      pool(jnp.zeros((1, tokens, 1)), scale)


def test_entry_points_agree(params):
  def everything(model, x):
    table, every = model.codebook(), model.encode_all(x)
    out = model(x, 2)
    ids = out["indices"]
    rec = [out["rec"], model.decode_indices(ids), model.decode_indices(ids, table)]
    return every, [ids, model.encode(x, 2), model.encode(x, 2, table)], rec

  every, ids, rec = run(params, everything, images())
  assert {s: x.shape for s, x in every.items()} == {1: (2, 81), 2: (2, 16), 3: (2, 9)}
  for found in ids:
    np.testing.assert_array_equal(found, every[2])
  for found in rec:
    assert found.shape == (2, 16, 24)
    close(found, rec[0], 1e-5)


def test_images_of_another_size_are_resized(params):
  flat = jnp.full((2, 50, 31, 3), 0.3)
  want = run(params, TaTok.features, jnp.full((2, 36, 36, 3), 0.3))
  close(run(params, TaTok.features, flat), want)


def test_gradients_of_the_two_losses(params):
  """The reconstruction trains all but W and E; the codebook term trains W alone."""

  def grads(pick):
    return jax.jit(jax.grad(lambda p: pick(run(p, TaTok.__call__, images(), scale=2))))(params)

  rec = grads(lambda out: jnp.square(out["rec"]).sum())
  quantizer = rec.pop("quantizer")
  assert not any(x.any() for x in jax.tree.leaves(quantizer))
  moved = jax.tree.map(lambda x: bool(x.any()), rec)
  moved["encoder"]["blocks"]["attn"]["k"]["bias"] = True  # softmax ignores a shift of all logits
  moved["decoder"]["blocks"]["attn"]["k"]["bias"] = True
  assert all(jax.tree.leaves(moved)), moved
  code = grads(lambda out: out["codebook_loss"])
  assert code["quantizer"]["proj"]["kernel"].any() and code["quantizer"]["proj"]["bias"].any()
  code["quantizer"].pop("proj")
  assert not any(x.any() for x in jax.tree.leaves(code))


def test_configs_fill_in_and_refuse():
  assert (CONFIG.blocks, CONFIG.decoder.channels, CONFIG.decoder.width) == (2, 16, 24)
  whole = {"encoder": CONFIG.encoder, "decoder": {"depth": 1}, "codes": 4, "width": 8}
  assert TaTokConfig(**whole, dtype="bfloat16").decoder.dtype == "bfloat16"
  assert TaTokConfig(**whole, select_layer=2).blocks == 2
  for wrong in (
    {"select_layer": -4},
    {"select_layer": 4},
    {"stochastic": True},
    {"decoder": {"depth": 1, "channels": 9}},
    {"codebook": "tabel"},
  ):
    with pytest.raises(ValueError):
      TaTokConfig(**{**whole, **wrong})


def test_codes_outside_the_table_and_odd_counts_are_refused(params):
  with pytest.raises(ValueError, match="64"):
    TaTok(CONFIG).apply({"params": params}, np.full((1, 4), 64), method=TaTok.decode_indices)
  with pytest.raises(ValueError, match="5 tokens"):
    run(params, TaTok.decode_indices, np.zeros((1, 5), np.int32))
