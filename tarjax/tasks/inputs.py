"""What the image tasks share: what they read, pixels into the networks' range, a step's scale."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SCALES = (1, 2, 3)


class Field(NamedTuple):
  """What a batch holds for each example: codes from 0 to below `bound`, or without one, floats."""

  shape: tuple[int, ...]
  dtype: Any
  bound: int = 0

  def check(self, name: str, value: np.ndarray) -> None:
    """Raises ValueError for an example's array that the stage cannot learn from.

    A latent may have another size: batches of one size are what the network needs.
    """
    if not self.bound:
      if value.ndim != len(self.shape) or value.shape[-1] != self.shape[-1]:
        raise ValueError(f"{name!r} has shape {value.shape}, the stage reads {self.shape}")
      if not np.isfinite(value).all():
        raise ValueError(f"{name!r} holds values that are not finite")
      return
    if value.shape != self.shape:
      raise ValueError(f"{name!r} has {value.size} codes, the stage reads {math.prod(self.shape)}")
    for end in (int(value.min()), int(value.max())):
      if not 0 <= end < self.bound:
        raise ValueError(f"{name!r} holds {end}, which is outside 0..{self.bound - 1}")


def word_fields(ta_tok) -> dict[str, Field]:
  """A picture's visual words at all scales, of a `TaTokConfig`."""
  return {f"codes{s}": Field((ta_tok.tokens(s),), np.int32, ta_tok.codes) for s in SCALES}


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
