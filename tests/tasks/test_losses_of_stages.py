"""What single stages add to the losses of the paper, on arrays small enough to reason about."""

import jax
import jax.numpy as jnp
import numpy as np

from tarjax.tasks.siglip2 import blocks, naming, spread
from tarjax.tasks.vqvae import swap_places


def test_swapped_places_bring_their_pixels():
  """A picture whose places name themselves stays consistent, and some places were exchanged."""
  b, h, f = 16, 4, 3
  quant = jnp.arange(b * h * h, dtype=jnp.float32).reshape(b, h, h, 1)
  images = jnp.repeat(quant.repeat(f, 1).repeat(f, 2), 3, -1)
  mixed, seen = swap_places(jax.random.key(0), quant, images, 1.0)
  np.testing.assert_array_equal(seen, jnp.repeat(mixed.repeat(f, 1).repeat(f, 2), 3, -1))
  other = np.asarray(mixed != quant)[..., 0]
  assert other.any((1, 2)).all() and not other.all((1, 2)).any()
  np.testing.assert_array_equal(mixed[other], jnp.roll(quant, 1, 0)[other])
  same, untouched = swap_places(jax.random.key(0), quant, images, 0.0)
  np.testing.assert_array_equal(same, quant)
  np.testing.assert_array_equal(untouched, images)


def test_blocks_are_whole_squares_in_raster_order():
  image = jnp.arange(5 * 7, dtype=jnp.float32).reshape(1, 5, 7, 1)
  cut = blocks(image, 2)
  assert cut.shape == (1, 6, 4)
  np.testing.assert_array_equal(cut[0, 0], [0, 1, 7, 8])
  np.testing.assert_array_equal(cut[0, 4], [16, 17, 23, 24])


def test_spread_is_of_the_chosen_states():
  rng = np.random.default_rng(0)
  states, where = rng.normal(size=(3, 5, 4)), rng.random((3, 5)) < 0.5
  chosen = states[where]
  expected = np.square(chosen - chosen.mean(0)).sum(-1).mean()
  np.testing.assert_allclose(spread(jnp.asarray(states), jnp.asarray(where)), expected, rtol=1e-5)
  assert spread(jnp.asarray(states), jnp.zeros_like(where)) == 0  # nothing is empty


def test_naming():
  """The cross-entropies add up; right is what has every attribute right, where something stands."""
  regions = jnp.array([[[0, 0], [2, 1], [1, 1]]])
  logits = jnp.array([[[9.0, 0, 0, 9, 0], [0, 0, 9, 0, 9], [0, 9, 0, 9, 0]]])  # last colour wrong
  metrics = naming(logits, regions, (3, 2))
  surprise = [np.log(1 + 2 * np.exp(-9)), np.log(1 + np.exp(-9))]
  expected = surprise[0] + surprise[1] + 9 / 3
  np.testing.assert_allclose(metrics["naming"], expected, rtol=1e-5)
  assert metrics["named"] == 0.5
