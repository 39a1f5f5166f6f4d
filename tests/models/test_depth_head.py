"""The depth head: what it is taught is what it draws, one sub-code after another."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarjax import sampling
from tarjax.models.depth_head import DepthHead, DepthHeadConfig

FIELDS = {"width": 16, "codes": 32, "codebooks": 4, "code_width": 12, "heads": 2, "depth": 2}
CONFIG = DepthHeadConfig(**FIELDS)


def params_of(module, *inputs):
  rng, shapes = np.random.default_rng(0), jax.eval_shape(module.init, jax.random.key(0), *inputs)
  fill = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)  # noqa: E731
  return jax.tree.map(fill, nn.meta.unbox(shapes)["params"])


@pytest.fixture(scope="module")
def head():
  """Module, parameters, hidden states and sub-codes."""
  rng, module = np.random.default_rng(0), DepthHead(CONFIG)
  hidden = rng.normal(size=(2, 3, 16)).astype(np.float32)
  targets = rng.integers(0, 8, (2, 3, 4)).astype(np.int32)
  return module, params_of(module, hidden, targets), hidden, targets


@pytest.fixture(scope="module")
def drawn(head):
  module, params, hidden, _ = head

  def draw(hidden, seeds, position, settings):
    return sampling.draw_subcodes(module, params, hidden, seeds, position, **settings)

  return jax.jit(draw, compiler_options={"xla_backend_optimization_level": 0})


def test_taught_logits_are_those_that_are_drawn_from(head, drawn):
  module, params, hidden, _ = head
  seeds = np.array([3, 4], np.uint32)
  settings = sampling.draw_settings(0.8, 5, 0.9)
  codes, logits = zip(*(drawn(hidden[:, i], seeds, i, settings) for i in range(3)), strict=True)
  codes, logits = jnp.stack(codes, 1), jnp.stack(logits, 1)  # [b l m], [b l m e]
  assert codes.shape == (2, 3, 4) and codes.dtype == jnp.int32 and codes.max() < 8
  taught = jax.jit(module.apply)({"params": params}, hidden, codes)
  assert taught.shape == (2, 3, 4, 8) and taught.dtype == jnp.float32
  np.testing.assert_allclose(taught, logits, atol=2e-5)
  kept = sampling.filter_logits(logits, 0.8, 5, 0.9)
  assert np.isfinite(np.take_along_axis(np.asarray(kept), np.asarray(codes)[..., None], -1)).all()


def test_a_sub_code_sees_those_before_it_only(head):
  module, params, hidden, targets = head
  run = jax.jit(module.apply)
  before = run({"params": params}, hidden, targets)
  for k in range(4):
    other = targets.copy()
    other[:, 1, k] = (other[:, 1, k] + 1) % 8
    same = np.isclose(run({"params": params}, hidden, other), before, atol=1e-6).all((0, 3))
    np.testing.assert_array_equal(same[[0, 2]], True)  # other places
    np.testing.assert_array_equal(same[1], np.arange(4) <= k)


def test_a_rows_draw_is_its_own(head, drawn):
  """It depends on its seed and place, not on the batch; without a temperature, on neither."""
  _, _, hidden, _ = head
  rows, settings = np.repeat(hidden[:1, 0], 40, 0), sampling.draw_settings(1.0, 0, 1.0)
  seeds = np.arange(40, dtype=np.uint32)
  codes = np.asarray(drawn(rows, seeds, 0, settings)[0])
  np.testing.assert_array_equal(drawn(rows[::-1], seeds[::-1], 0, settings)[0], codes[::-1])
  assert len(np.unique(codes, axis=0)) > 10
  assert (np.asarray(drawn(rows, seeds, 1, settings)[0]) != codes).any()
  greedy = sampling.draw_settings(0.0, 0, 1.0)
  likeliest, logits = drawn(rows, seeds, 0, greedy)
  np.testing.assert_array_equal(likeliest, jnp.argmax(logits, -1))
  assert len(np.unique(likeliest, axis=0)) == 1


@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_a_place_is_made_of_its_sub_codes(head, merge):
  _, _, hidden, targets = head
  module = DepthHead(DepthHeadConfig(**FIELDS, merge=merge))
  params = params_of(module, hidden, targets)
  table = params["codebooks"] / np.linalg.norm(params["codebooks"], axis=-1, keepdims=True)
  rows = np.stack([table[k][targets[..., k]] for k in range(4)], 2)  # [b l m c]
  rows = rows.reshape(2, 3, 12) if merge == "concat" else rows.sum(2)
  x = jax.nn.gelu(rows @ params["fc1"]["kernel"] + params["fc1"]["bias"])
  want = x @ params["fc2"]["kernel"] + params["fc2"]["bias"]
  got = jax.jit(functools.partial(module.apply, method="embed"))({"params": params}, targets)
  assert got.shape == (2, 3, 16)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_places_that_are_not_counted_may_be_negative(head):
  module, params, hidden, targets = head
  ignored = targets.copy()
  ignored[:, 1] = -100
  got = jax.jit(module.apply)({"params": params}, hidden, ignored)
  want = jax.jit(module.apply)({"params": params}, hidden, targets)
  np.testing.assert_allclose(got[:, ::2], want[:, ::2], atol=1e-6)
  assert np.isfinite(got).all()


def test_what_does_not_fit_is_named(head):
  module, params, hidden, targets = head
  with pytest.raises(ValueError, match="3 sub-codes at a place, the depth head has 4"):
    module.apply({"params": params}, hidden, targets[..., :3])
  refused = [
    ({"codebooks": 1}, "needs no depth head"),
    ({"codes": 30}, "codes=30 and code_width=12 do not divide into codebooks=4"),
    ({"heads": 3}, "width=16 does not divide into heads=3"),
    ({"merge": "mean"}, "merge='mean' is none of"),
  ]
  for changes, words in refused:
    with pytest.raises(ValueError, match=words):
      DepthHeadConfig(**{**FIELDS, **changes})
