"""Code search, the SimVQ quantiser and its gradients, the choice of codebook rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tarjax import sharding
from tarjax.models import vq
from tarjax.models.vq import (
  METRICS,
  SimVq,
  TableVq,
  mean_distances,
  nearest_code,
  select_codebook,
)


def draw(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def brute(z, table):
  z, table = np.asarray(z, np.float64), np.asarray(table, np.float64)
  far = np.square(z[..., None, :] - table).sum(-1)
  return far.argmin(-1), far.min(-1)


@pytest.mark.parametrize("codes", [256, 200])
@pytest.mark.parametrize("block", [8192, 64])
def test_search_equals_brute_force(codes, block):
  z, table = draw(0, 3, 50, 16), draw(1, codes, 16)
  index, distance = jax.jit(nearest_code, static_argnums=2)(z, table, block)
  want, far = brute(z, table)
  assert index.dtype == jnp.int32 and index.shape == (3, 50)
  np.testing.assert_array_equal(index, want)
  np.testing.assert_allclose(distance, far, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [8192, 128])
def test_the_first_of_equal_codes_wins(block):
  table = jnp.tile(draw(1, 64, 8), (4, 1))
  index, distance = nearest_code(table[200:], table, block)
  np.testing.assert_array_equal(index, np.arange(200, 256) % 64)
  assert distance.max() < 1e-5


def test_search_survives_nearly_equal_norms():
  """Entries that differ in the seventh digit of |c|^2 - 2 z c need full-precision products."""
  table = 1 + 1e-3 * draw(1, 512, 32)
  index, _ = nearest_code(table, table)
  np.testing.assert_array_equal(index, np.arange(512))


def test_search_refuses_another_width():
  with pytest.raises(ValueError, match="8 wide"):
    nearest_code(draw(0, 2, 8), draw(1, 4, 9))


def quantiser(**options):
  model = SimVq(codes=32, width=8, **options)
  params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), draw(2, 2, 5, 8))["params"])
  return model, params


def test_w_starts_as_the_identity():
  model, params = quantiser()
  table = model.apply({"params": params}, method=SimVq.codebook)
  np.testing.assert_allclose(table, params["embedding"], atol=1e-7)


@pytest.mark.parametrize("l2", [False, True])
def test_gradients_go_where_the_losses_say(l2):
  """Reconstruction and commitment reach z alone, the codebook term W alone; none reaches E."""
  model, params = quantiser(l2_normalized=l2)
  params["proj"]["kernel"] += 0.1 * draw(3, 8, 8)

  def grads(pick):
    def loss(p, z):
      return pick(model.apply({"params": p}, z))

    return jax.jit(jax.grad(loss, (0, 1)))(params, draw(2, 2, 5, 8))

  weights = draw(4, 2, 5, 8)
  for pick, to_w, to_z in [
    (lambda out: (out["quant"] * weights).sum(), False, True),
    (lambda out: out["codebook_loss"], True, False),
    (lambda out: out["commit"], False, True),
  ]:
    tree, z = grads(pick)
    assert not tree["embedding"].any()
    assert bool(tree["proj"]["kernel"].any()) == to_w
    assert bool(tree["proj"]["bias"].any()) == to_w
    assert bool(z.any()) == to_z
  if not l2:  # straight through
    np.testing.assert_array_equal(grads(lambda out: (out["quant"] * weights).sum())[1], weights)


def test_gathered_gradient_of_w_is_that_of_the_full_table():
  model, params = quantiser()
  z = draw(2, 2, 5, 8)
  index = model.apply({"params": params}, z)["indices"]

  def full(proj):
    table = params["embedding"] @ proj["kernel"] + proj["bias"]
    return jnp.square(table[index] - z).mean()

  def gathered(proj):
    return model.apply({"params": {**params, "proj": proj}}, z)["codebook_loss"]

  want, got = jax.grad(full)(params["proj"]), jax.grad(gathered)(params["proj"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)


def test_losses_are_means_or_sums_over_the_width():
  z = draw(2, 2, 5, 8)
  model, params = quantiser()
  out = model.apply({"params": params}, z)
  code = params["embedding"][out["indices"]]
  assert out["commit"] == pytest.approx(np.square(code - z).mean(), rel=1e-5)
  assert out["distance"].sum() == pytest.approx(np.square(code - z).sum(), rel=1e-5)
  model, params = quantiser(l2_normalized=True)
  out = model.apply({"params": params}, z)
  assert out["codebook_loss"] == pytest.approx(2 - 2 * (out["z"] * out["quant"]).sum(-1).mean())


def test_a_precomputed_codebook_gives_the_same_codes():
  model, params = quantiser(l2_normalized=True)
  table = model.apply({"params": params}, method=SimVq.codebook)
  plain = model.apply({"params": params}, draw(2, 2, 5, 8))
  given = model.apply({"params": params}, draw(2, 2, 5, 8), codebook=table)
  np.testing.assert_array_equal(plain["indices"], given["indices"])
  np.testing.assert_allclose(plain["quant"], given["quant"], atol=1e-6)


@pytest.mark.parametrize("temperature", [0.2, -1.0])
def test_sampled_codes_follow_the_softmax_of_cosines(temperature):
  model, params = quantiser(l2_normalized=True, stochastic=True, temperature=temperature)
  inverse = 5.0
  if temperature < 0:
    assert params["temperature_inv"] == 10
    params["temperature_inv"] = jnp.float32(inverse)
  z = jnp.broadcast_to(draw(5, 8), (5, 1000, 8))
  ids = jax.jit(model.apply)({"params": params}, z, jax.random.key(6))["indices"]
  table = params["embedding"] / jnp.linalg.norm(params["embedding"], axis=1, keepdims=True)
  want = jax.nn.softmax(table @ (z[0, 0] / jnp.linalg.norm(z[0, 0])) * inverse)
  got = np.bincount(np.ravel(ids), minlength=32) / ids.size
  assert (np.abs(got - want) < 4 * np.sqrt(want / ids.size) + 1e-4).all()
  still = jax.jit(model.apply)({"params": params}, z)["indices"]  # without a key: the most likely
  assert (still == want.argmax()).all()


def test_selection_agrees_with_all_pairs():
  table = np.random.default_rng(0).normal(size=(90, 7)).astype(np.float32)
  far = np.linalg.norm(table[:, None] - table[None].astype(np.float64), axis=-1)
  for block in (13, 45, 4096):
    np.testing.assert_allclose(mean_distances(table, block=block), far.sum(1) / 89, rtol=1e-5)
  order = np.argsort(-far.sum(1), kind="stable")
  ids = select_codebook(table, 20)
  assert ids.dtype == np.int64
  np.testing.assert_array_equal(ids, np.sort(order[:20]))
  np.testing.assert_array_equal(
    select_codebook(table, 20, direction="smallest"), np.sort(order[-20:])
  )


def test_closed_forms_of_the_metrics():
  table = np.random.default_rng(1).normal(1, 1, (60, 5))
  pairs = np.square(table[:, None] - table[None]).sum(-1)
  rows = table / np.linalg.norm(table, axis=1, keepdims=True)
  for block in (7, 4096):
    mean = mean_distances(table, "sqeuclidean", block)
    np.testing.assert_allclose(mean, pairs.sum(1) / 59)
    mean = mean_distances(table, "cosine", block)
    np.testing.assert_allclose(mean, (1 - rows @ rows.T).sum(1) / 59)


@pytest.mark.parametrize("metric", METRICS)
def test_a_bfloat16_table_is_compared_as_float32(metric):
  table = np.random.default_rng(3).normal(size=(50, 6)).astype(ml_dtypes.bfloat16)
  mean = mean_distances(table.astype(np.float32), metric)
  np.testing.assert_array_equal(mean_distances(table, metric), mean)


def test_equal_means_go_to_the_lower_number_and_candidates_bound_the_choice():
  corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
  np.testing.assert_array_equal(select_codebook(corners, 2, "sqeuclidean"), [0, 1])
  table = np.random.default_rng(2).normal(size=(30, 4))
  ids = select_codebook(table, 5, candidates=np.arange(10, 20))
  assert ids.min() >= 10 and ids.max() < 20
  np.testing.assert_array_equal(ids, select_codebook(table[10:20], 5) + 10)


@pytest.mark.parametrize(
  "options",
  [{"k": 31}, {"k": 0}, {"k": 3, "metric": "l1"}, {"k": 3, "direction": "up"}],
)
def test_impossible_selections_are_refused(options):
  with pytest.raises(ValueError):
    select_codebook(np.ones((30, 4)), **options)


@pytest.mark.parametrize("sizes", [{"data": 4, "model": 2}, {"fsdp": 2, "model": 4}, {"data": 8}])
def test_a_search_over_devices_is_the_search(sizes):
  """Also among equals, of which the first is taken, wherever it lies."""
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)
  table = table.at[32:40].set(table[:8])
  z = jnp.concatenate([table[:40], table[:24] + 0.01]).reshape(8, 8, 8)
  want = nearest_code(z, table)
  mesh = sharding.make_mesh(sizes)
  with jax.set_mesh(mesh):
    got = jax.jit(nearest_code, static_argnums=2)(z, table, 4)
  np.testing.assert_array_equal(got[0], want[0])
  assert (np.asarray(got[0]).reshape(-1)[32:40] == np.arange(8)).all()
  rounding = 1e-6 * float(jnp.square(z).sum(-1).max())  # of the terms that a distance is made of
  np.testing.assert_allclose(got[1], want[1], atol=rounding)


@pytest.mark.parametrize("block", [16, 64])
def test_the_search_of_tpus_is_the_search(block, monkeypatch):
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)
  table = table.at[32:40].set(table[:8])
  z = jnp.concatenate([table[:40], table[:24] + 0.01])
  want = nearest_code(z, table, block)
  monkeypatch.setattr(vq, "platform", lambda: "tpu")
  got = nearest_code(z, table, block)
  np.testing.assert_array_equal(got[0], want[0])
  np.testing.assert_array_equal(got[1], want[1])


def test_floats_as_ordered_integers():
  x = np.float32(
    [-np.inf, -3e38, -1.5, -1e-45, 0.0, 1e-45, 2.0, np.nextafter(2, 3, dtype="f4"), np.inf]
  )
  keys = np.asarray(vq.ordered(jnp.asarray(x)))
  assert (np.diff(keys.astype(np.int64)) > 0).all()
  back = jax.lax.bitcast_convert_type(vq.ordered(jnp.asarray(keys).view(jnp.float32)), jnp.float32)
  np.testing.assert_array_equal(np.asarray(back), x)


def test_an_ordinary_codebook_is_trained_itself():
  """The codebook term moves the rows that were chosen, and no others; nothing else reaches them."""
  model = TableVq(16, 8, True)
  z = draw(2, 2, 5, 8)
  params = nn.meta.unbox(model.init(jax.random.key(1), z)["params"])
  assert set(params) == {"table"}
  table = model.apply({"params": params}, method=TableVq.codebook)
  np.testing.assert_allclose(np.linalg.norm(table, axis=-1), 1, rtol=1e-5)
  out = model.apply({"params": params}, z)
  np.testing.assert_array_equal(out["indices"], (out["z"] @ table.T).argmax(-1))

  def gradient(name):
    return jax.grad(lambda p: model.apply({"params": p}, z)[name].sum())(params)["table"]

  moved = np.flatnonzero(np.asarray(gradient("codebook_loss")).any(-1))
  np.testing.assert_array_equal(moved, np.unique(out["indices"]))
  assert not gradient("commit").any() and not gradient("quant").any()
