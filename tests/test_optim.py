import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from fake_stage import get_config

from tarjax import optim, sharding
from tarjax.config import UserError
from tarjax.convert.rules import flatten


def config(**changes):
  return get_config({f"optim.{k}": v for k, v in changes.items()}).optim


def test_only_kernels_decay():
  params = {
    "blocks": {"q": {"kernel": jnp.ones((3, 4, 4)), "bias": jnp.ones((3, 4))}},
    "norm": {"scale": jnp.ones(4)},
    "embed": {"embedding": jnp.ones((8, 4))},
    "position": jnp.ones((9, 4)),
  }
  tx = optim.make_optimizer(config(warmup=0, lr=0.1, weight_decay=0.5, clip=0.0), 10)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  for name, update in flatten(updates).items():
    expected = -0.1 * 0.5 if name == "blocks/q/kernel" else 0.0
    np.testing.assert_allclose(update, expected, atol=1e-7, err_msg=name)


def test_cosine_schedule():
  schedule = optim.make_schedule(config(lr=2.0, warmup=10, final=0.01), 110)
  for step, value in ((0, 0.02), (5, 1.01), (10, 2.0), (60, 1.01), (110, 0.02), (500, 0.02)):
    assert float(schedule(step)) == pytest.approx(value, abs=1e-6)
  flat = optim.make_schedule(config(lr=2.0, warmup=0, final=0.0), 100)
  assert float(flat(0)) == pytest.approx(2.0) and float(flat(100)) == pytest.approx(0, abs=1e-6)


def test_constant_schedule():
  schedule = optim.make_schedule(config(lr=2.0, warmup=10, schedule="constant"), 100)
  for step, value in ((0, 0.0), (5, 1.0), (10, 2.0), (99, 2.0)):
    assert float(schedule(step)) == pytest.approx(value, abs=1e-6)
  assert float(optim.make_schedule(config(lr=2.0, warmup=0, schedule="constant"), 9)(0)) == 2.0


def test_adamw_against_its_formula():
  c = config(lr=0.1, warmup=0, schedule="constant", clip=1.0, weight_decay=0.3)
  tx = optim.make_optimizer(c, 10)
  params = {"kernel": jnp.asarray([[1.0, -2.0], [3.0, 0.5]])}
  state, w = tx.init(params), np.asarray(params["kernel"], np.float64)
  m = v = np.zeros_like(w)
  for step in range(1, 4):
    g = np.asarray([[3.0, 4.0], [0.0, 12.0]]) * step  # norm 13 * step, clipped to 1
    updates, state = tx.update({"kernel": jnp.asarray(g, jnp.float32)}, state, params)
    params = optax.apply_updates(params, updates)
    g = g / (13 * step)
    m, v = c.b1 * m + (1 - c.b1) * g, c.b2 * v + (1 - c.b2) * g * g
    adam = m / (1 - c.b1**step) / (np.sqrt(v / (1 - c.b2**step)) + c.eps)
    w = w - c.lr * (adam + c.weight_decay * w)
  np.testing.assert_allclose(params["kernel"], w, atol=1e-6)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"name": "lion"}, "lion"),
    ({"schedule": "linear"}, "linear"),
    ({"warmup": 10}, "warmup=10 must be shorter than steps=10"),
  ],
)
def test_bad_configs(changes, words):
  with pytest.raises(UserError, match=words):
    optim.make_optimizer(config(**changes), 10)


def test_moments_are_split_like_their_parameters():
  mesh = sharding.make_mesh({"fsdp": 4, "model": 2})
  boxed = {"kernel": nn.LogicallyPartitioned(jnp.ones((8, 4)), ("embed", "mlp"))}
  where = sharding.tree_shardings(boxed, mesh)
  tx = optim.make_optimizer(config(), 10)
  state, placed = optim.opt_shardings(tx, nn.meta.unbox(boxed), where, sharding.replicated(mesh))
  for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True):
    assert place == (where["kernel"] if leaf.shape == (8, 4) else sharding.replicated(mesh))
  assert sum(leaf.shape == (8, 4) for leaf in jax.tree.leaves(state)) == 2


def test_dead_codes_move_beside_live_ones():
  """Rows without a gradient are restarted, at first only, and the others follow AdamW alone."""
  options = {"warmup": 0, "lr": 0.01, "weight_decay": 0.0, "clip": 0.0}
  config_ = config(**options)
  with config_.unlocked():
    config_.restart_codes = 8
  steps = 600
  tx, plain = optim.make_optimizer(config_, steps), optim.make_optimizer(config(**options), steps)
  table = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
  start = {"vq": {"codebook": jnp.asarray(table)}, "conv": {"kernel": jnp.ones((2, 2))}}
  grad = np.zeros((8, 4), np.float32)
  grad[:3] = 1e-3  # three codes are chosen
  grads = {"vq": {"codebook": jnp.asarray(grad)}, "conv": {"kernel": jnp.ones((2, 2))}}

  def run(tx, params, state, count):
    @jax.jit
    def step(params, state):
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state

    for _ in range(count):
      params, state = step(params, state)
    return params, state

  before, _ = run(tx, start, tx.init(start), 140)
  np.testing.assert_array_equal(before["vq"]["codebook"][3:], table[3:])  # not yet judged dead
  after, state = run(tx, start, tx.init(start), 160)
  expected, _ = run(plain, start, plain.init(start), 160)
  live, moved = np.asarray(after["vq"]["codebook"][:3]), np.asarray(after["vq"]["codebook"][3:])
  np.testing.assert_allclose(live, expected["vq"]["codebook"][:3], rtol=1e-6)
  np.testing.assert_allclose(after["conv"]["kernel"], expected["conv"]["kernel"], rtol=1e-6)
  apart = np.linalg.norm(moved[:, None] - live, axis=-1).min(1)
  length = np.linalg.norm(live, axis=-1).max()
  assert (apart > 0).all() and (apart < 0.5 * length).all()
  late, _ = run(tx, after, state._replace(step=jnp.int32(420)), 200)  # past 70% of the steps
  np.testing.assert_array_equal(late["vq"]["codebook"][3:], moved)


def test_restarts_need_one_codebook():
  config_ = config(warmup=0)
  with config_.unlocked():
    config_.restart_codes = 8
  tx = optim.make_optimizer(config_, 10)
  params = {"codebook": jnp.ones((6, 4))}
  with pytest.raises(UserError, match="restart_codes=8"):
    tx.update(params, tx.init(params), params)


def test_average_follows_its_formula_and_its_parameters():
  changes = {"warmup": 0, "lr": 0.1, "schedule": "constant", "clip": 0.0}
  config_ = config(**changes)
  with config_.unlocked():
    config_.ema = 0.75
  tx, plain = optim.make_optimizer(config_, 10), optim.make_optimizer(config(**changes), 10)
  params = {"kernel": jnp.asarray([[1.0, -2.0], [3.0, 0.5]])}
  state, other, average = tx.init(params), plain.init(params), np.asarray(params["kernel"])
  assert optim.averaged(other, params) is params
  for step in range(3):
    grads = {"kernel": jnp.full((2, 2), step - 0.5)}
    updates, state = tx.update(grads, state, params)
    same, other = plain.update(grads, other, params)
    np.testing.assert_array_equal(updates["kernel"], same["kernel"])
    params = optax.apply_updates(params, updates)
    average = 0.75 * average + 0.25 * np.asarray(params["kernel"])
    np.testing.assert_allclose(optim.averaged(state, params)["kernel"], average, rtol=1e-6)

  mesh = sharding.make_mesh({"fsdp": 4, "model": 2})
  boxed = {"kernel": nn.LogicallyPartitioned(jnp.ones((8, 4)), ("embed", "mlp"))}
  where = sharding.tree_shardings(boxed, mesh)
  _, placed = optim.opt_shardings(tx, nn.meta.unbox(boxed), where, sharding.replicated(mesh))
  assert optim.averaged(placed, None) == where


def test_average_must_be_one():
  config_ = config()
  with config_.unlocked():
    config_.ema = 1.0
  with pytest.raises(UserError, match="ema=1.0 must be between 0 and 1"):
    optim.make_optimizer(config_, 10)


def blocks_of(rng, n=2):
  shapes = {"q": (n, 8, 2, 4), "out": (n, 2, 4, 8), "up": (n, 8, 24), "down": (n, 24, 8)}
  kernels = {k: {"kernel": rng.normal(size=shape)} for k, shape in shapes.items()}
  kernels["q"]["bias"] = rng.normal(size=(n, 2, 4))
  return {"blocks": kernels, "embed": {"embedding": rng.normal(size=(5, 8))}}


def test_muon_on_blocks_is_pytorchs_and_the_rest_is_nadam():
  """A layer's heads are one matrix. PyTorch iterates in bfloat16 and corrects no average."""
  c = config(name="muon", lr=0.01, warmup=0, schedule="constant", clip=0.0, weight_decay=0.1)
  tx, rng = optim.make_optimizer(c, 10), np.random.default_rng(0)
  adam = optax.adamw(
    0.01, c.b1, c.b2, c.eps, weight_decay=0.1, mask=optim.decay_mask, nesterov=True
  )
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), blocks_of(rng))
  rest, state, other = params, tx.init(params), adam.init(params)

  def layers(tree):  # {"q/0": torch matrix}
    rows = {"q": 8, "out": 8, "up": 8, "down": 24}
    flat = {k: np.asarray(tree["blocks"][k]["kernel"], np.float32) for k in rows}
    return {
      f"{k}/{i}": torch.tensor(x[i].reshape(rows[k], -1)) for k, x in flat.items() for i in (0, 1)
    }

  theirs = {k: torch.nn.Parameter(x) for k, x in layers(params).items()}
  muon = torch.optim.Muon(
    list(theirs.values()), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
  )
  start = layers(params)
  for _ in range(4):
    grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), blocks_of(rng))
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    updates, other = adam.update(grads, other, rest)
    rest = optax.apply_updates(rest, updates)
    for k, g in layers(grads).items():
      theirs[k].grad = g
    muon.step()
  for k, x in layers(params).items():
    moved, want = (x - start[k]).numpy(), (theirs[k].detach() - start[k]).numpy()
    assert np.abs(moved - want).max() < 0.15 * np.abs(want).max(), k
  for mine, adams in (
    (params["embed"]["embedding"], rest["embed"]["embedding"]),
    (params["blocks"]["q"]["bias"], rest["blocks"]["q"]["bias"]),
  ):
    np.testing.assert_allclose(mine, adams, rtol=1e-5)


def test_muons_momentum_is_sharded_as_its_parameter():
  c = config(name="muon", warmup=0)
  params = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, blocks_of(np.random.default_rng(0))))
  where = jax.tree.map(lambda x: f"like {x.shape}", params)
  state, placed = optim.opt_shardings(optim.make_optimizer(c, 10), params, where, "other")
  pairs = list(zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True))
  assert {p for _, p in pairs} == {*jax.tree.leaves(where), "other"}
  assert all(p == (f"like {x.shape}" if x.shape and x.shape != (3,) else "other") for x, p in pairs)


def test_a_discriminator_has_its_own_settings():
  """Its updates are those of a run with them, the others' those of a run without it."""
  own = {"lr": 0.01, "b1": 0.5, "b2": 0.9, "weight_decay": 0.2}
  config_ = config(warmup=0, lr=0.1, weight_decay=0.5, clip=0.0)
  with config_.unlocked():
    config_.discriminator = own
  tx = optim.make_optimizer(config_, 10)
  plain, judge = (
    optim.make_optimizer(config(warmup=0, clip=0.0, **changes), 10)
    for changes in ({"lr": 0.1, "weight_decay": 0.5}, own)
  )
  params = {"decoder": {"kernel": jnp.ones(3)}, "discriminator": {"kernel": jnp.full(3, 2.0)}}
  parts = [{name: params[name]} for name in params]
  state, states = tx.init(params), [t.init(x) for t, x in zip((plain, judge), parts, strict=True)]
  for step in range(3):
    grads = jax.tree.map(lambda x, step=step: x * jnp.array([1.0, -2.0, step]), params)
    updates, state = tx.update(grads, state, params)
    for i, (t, name) in enumerate(zip((plain, judge), params, strict=True)):
      want, states[i] = t.update({name: grads[name]}, states[i], parts[i])
      np.testing.assert_allclose(updates[name]["kernel"], want[name]["kernel"], rtol=1e-6)
