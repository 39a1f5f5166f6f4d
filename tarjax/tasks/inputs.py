"""What the image tasks share: pixels into the networks' range, and the pool scale of a step."""

import jax
import jax.numpy as jnp
import numpy as np

SCALES = (1, 2, 3)


def pixels(image: jax.Array) -> jax.Array:
  """uint8[b y x 3] -> float32[b y x 3] in [-1, 1]."""
  return image.astype(jnp.float32) / 127.5 - 1


def draw_scale(config, step: int) -> int:
  """The pool scale of a global step: a pure function of (config.seed, step), equal on all hosts.

  `config.scales`, e.g. {"1": 2.0, "2": 1.0, "3": 1.0} (the paper's mixture), weighs the scales.
  """
  weights = np.asarray([float(config.scales.get(str(s), 0)) for s in SCALES])
  rng = np.random.default_rng([config.seed, step])
  return int(rng.choice(SCALES, p=weights / weights.sum()))
