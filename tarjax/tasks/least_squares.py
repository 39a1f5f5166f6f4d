"""Where a short run of TA-Tok starts: its linear maps solved for, one after the other.

What is quantised are the largest directions of the teacher's features; W takes the frozen rows E as
near to them as a linear map can; the last layer of the decoder reads the features off what the
codes leave. Rows are float64 throughout, and few enough for that.
"""

import numpy as np

RIDGE = 1e-3  # of the mean square of what is read


def solve(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None):
  """The map that takes float[t d] nearest to float[t w]: float32 kernel [d w] and bias [w].

  Args:
    weight: float[t], how much each row counts.
  """
  weight = np.ones(len(x)) if weight is None else np.asarray(weight, np.float64)
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  mean_x, mean_y = np.average(x, 0, weight), np.average(y, 0, weight)
  x, y = x - mean_x, y - mean_y
  scaled = x * weight[:, None]
  square = scaled.T @ x
  ridge = RIDGE * np.trace(square) / len(square) * np.eye(len(square))
  kernel = np.linalg.solve(square + ridge, scaled.T @ y)
  return kernel.astype(np.float32), (mean_y - mean_x @ kernel).astype(np.float32)


def directions(features: np.ndarray, count: int, width: int) -> np.ndarray:
  """The `count` largest directions of float[t d], in float[t width], zeros in the others.

  Their sizes are evened out half way (in proportion to the root of what they were), or the first
  would take all the codes. The mean square of those in use is 1.
  """
  x = np.asarray(features, np.float64)
  x = x - x.mean(0)
  size, basis = np.linalg.eigh(x.T @ x / len(x))
  z = (x @ basis[:, ::-1][:, :count]) / np.maximum(size[::-1][:count], 1e-12) ** 0.25
  z /= np.sqrt(np.square(z).mean())
  return np.pad(z, ((0, 0), (0, width - count)))


def follow(rows: np.ndarray, z: np.ndarray, rounds: int):
  """The map under which `rows` are the best codebook of z that it finds: k-means of linear centres.

  It starts where the rows have z's mean and covariance; then each round gives every z to its
  nearest row, and solves for the map that takes the rows to the means of what they were given.

  Args:
    rows: float[e d].
    z: float[t w].

  Returns:
    kernel float32[d w] and bias float32[w] of rows @ kernel + bias.
  """
  kernel, bias = match_moments(rows, z)
  for _ in range(rounds):
    near = nearest(z, rows @ kernel + bias)
    count = np.bincount(near, minlength=len(rows))
    means = np.zeros((len(rows), z.shape[1]))
    np.add.at(means, near, z)
    kernel, bias = solve(rows, means / np.maximum(count, 1)[:, None], count)
  return kernel, bias


def nearest(z: np.ndarray, codebook: np.ndarray) -> np.ndarray:
  """Index of the nearest code of each row, int[t]."""
  half, parts = np.square(codebook).sum(-1) / 2, np.array_split(z, len(z) // 4096 + 1)
  return np.concatenate([(half - part @ codebook.T).argmin(-1) for part in parts])


def match_moments(rows: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The map under which `rows` have the mean and covariance of `target`.

  Args:
    rows: float[e d].
    target: float[t w], w at most d.

  Returns:
    kernel float32[d w] and bias float32[w] of rows @ kernel + bias.
  """
  x, y = np.asarray(rows, np.float64), np.asarray(target, np.float64)
  size, basis = np.linalg.eigh(np.cov(x.T))
  whiten = (basis / np.sqrt(np.maximum(size, 1e-6 * size.max())))[:, -y.shape[1] :]
  size, basis = np.linalg.eigh(np.cov(y.T))
  colour = np.sqrt(np.maximum(size, 0))[:, None] * basis.T
  kernel = whiten @ colour  # the largest directions of one to those of the other
  bias = y.mean(0) - x.mean(0) @ kernel
  return kernel.astype(np.float32), bias.astype(np.float32)
