"""How close pictures and features come back, and how many codes are in use."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from tarjax.config import UserError

SIGMA, REACH = 1.5, 5  # of SSIM's windows: 11 pixels wide


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Peak signal-to-noise ratio in dB: uint8[n y x 3] each -> float64[n]."""
  error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean((1, 2, 3))
  return 10 * np.log10(255**2 / np.maximum(error, 1e-2))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Structural similarity (Wang et al. 2004): uint8[n y x 3] each -> float64[n].

  Gaussian windows that lie within the picture, mean over windows and channels.

  Raises:
    ValueError: pictures of less than 11 pixels a side.
  """
  if min(a.shape[1:3]) <= 2 * REACH:
    raise ValueError(f"SSIM needs pictures of 11 pixels a side or more, not {a.shape[1:3]}")

  def window(x):
    within = (slice(None), slice(REACH, -REACH), slice(REACH, -REACH))
    return ndimage.gaussian_filter(x, (0, SIGMA, SIGMA, 0), truncate=REACH / SIGMA)[within]

  x, y = a.astype(np.float64), b.astype(np.float64)
  mean_x, mean_y = window(x), window(y)
  var_x, var_y = window(x * x) - mean_x**2, window(y * y) - mean_y**2
  both = window(x * y) - mean_x * mean_y
  c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  above = (2 * mean_x * mean_y + c1) * (2 * both + c2)
  below = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
  return (above / below).mean((1, 2, 3))


def cosine(rec: np.ndarray, target: np.ndarray) -> float:
  """Mean cosine of features float[... d] and what they should be."""
  rec, target = np.asarray(rec, np.float64), np.asarray(target, np.float64)
  lengths = np.linalg.norm(rec, axis=-1) * np.linalg.norm(target, axis=-1)
  return float(((rec * target).sum(-1) / np.maximum(lengths, 1e-12)).mean())


def spread(ids: np.ndarray, codes: int) -> dict[str, float]:
  """Share of a codebook that int[n] ids touch, and the perplexity of their distribution."""
  return spread_of(np.bincount(ids, minlength=codes))


def spread_of(counts: np.ndarray) -> dict[str, float]:
  """The same, from how often each code was chosen: int[e]."""
  share = counts / counts.sum()
  kept = share[share > 0]
  perplexity = float(np.exp(-(kept * np.log(kept)).sum()))
  return {"usage": len(kept) / len(counts), "perplexity": perplexity}


def make_lpips(run: str | Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
  """LPIPS by an imported run's weights, in full float32: uint8[n y x 3] each -> float64[n].

  Raises:
    UserError: no such run, or one of another network.
  """
  import jax

  from tarjax import checkpoint
  from tarjax.models.lpips import Lpips, LpipsConfig
  from tarjax.tasks.inputs import pixels

  config = checkpoint.read_config(run)
  if config.task != "lpips":
    raise UserError(f"{run} is a run of {config.task}, not of LPIPS: import its weights first")
  model, params = Lpips(LpipsConfig(**config.model)), checkpoint.load(str(run))

  @jax.jit
  def distance(params, a, b):
    with jax.default_matmul_precision("highest"):
      return model.apply({"params": params}, pixels(a), pixels(b))

  return lambda a, b: np.asarray(distance(params, a, b), np.float64)
