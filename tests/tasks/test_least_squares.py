"""The least-squares start of TA-Tok: each map against numpy, and what the start is good for."""

import numpy as np
import pytest

from tarjax.tasks.least_squares import directions, follow, match_moments, nearest, solve


def test_solve_is_numpys_weighted_least_squares():
  rng = np.random.default_rng(0)
  x, weight = rng.normal(2.0, 1.0, (400, 5)), rng.integers(0, 4, 400)
  y = x @ rng.normal(size=(5, 3)) + 1 + rng.normal(0, 0.1, (400, 3))
  kernel, bias = solve(x, y, weight)
  repeated = np.repeat(np.c_[x, np.ones(400)], weight, 0)
  expected = np.linalg.lstsq(repeated, np.repeat(y, weight, 0), rcond=None)[0]
  np.testing.assert_allclose(kernel, expected[:-1], atol=0.01)  # the ridge takes a thousandth
  np.testing.assert_allclose(bias, expected[-1], atol=0.05)


def test_directions_are_the_largest_evened_out_half_way():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(5000, 4)) * [1.0, 8.0, 0.1, 2.0] + 3
  z = directions(x, 2, 6)
  assert z.shape == (5000, 6) and not z[:, 2:].any()
  assert np.square(z[:, :2]).mean() == pytest.approx(1)
  assert z[:, 0].std() / z[:, 1].std() == pytest.approx(2, rel=0.1)  # the root of 8 / 2
  for column, source in ((0, 1), (1, 3)):
    assert abs(np.corrcoef(z[:, column], x[:, source])[0, 1]) > 0.99


def test_matched_moments():
  """The mapped rows have the target's mean and covariance, also when that is not of full rank."""
  rng = np.random.default_rng(2)
  rows = rng.normal(1.0, 0.1, (200, 6)) @ rng.normal(size=(6, 6))
  full = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 6)) + 2
  for target in (full, full[:, :3]):
    kernel, bias = match_moments(rows, target)
    mapped = rows @ kernel + bias
    np.testing.assert_allclose(mapped.mean(0), target.mean(0), atol=1e-4)
    np.testing.assert_allclose(np.cov(mapped.T), np.cov(target.T), atol=1e-3)


def test_rows_follow_what_they_quantise():
  """Clusters that a linear map of the rows can reach are found; others are come nearer to."""
  rng = np.random.default_rng(3)
  rows, true = rng.normal(size=(64, 32)), rng.normal(size=(32, 3))
  reachable = (rows @ true)[rng.integers(64, size=4000)] + rng.normal(0, 0.01, (4000, 3))
  elsewhere = rng.normal(size=(64, 3))[rng.integers(64, size=4000)]

  def error(z, kernel, bias):
    codebook = rows @ kernel + bias
    return np.square(z - codebook[nearest(z, codebook)]).mean() / z.var(0).mean()

  assert error(reachable, *follow(rows, reachable, 30)) < 0.3 * error(
    reachable, *match_moments(rows, reachable)
  )
  assert error(elsewhere, *follow(rows, elsewhere, 30)) < 0.6 * error(
    elsewhere, *match_moments(rows, elsewhere)
  )


def test_nearest_in_blocks():
  rng = np.random.default_rng(4)
  z, codebook = rng.normal(size=(9000, 2)), rng.normal(size=(50, 2))
  distance = np.square(z[:, None] - codebook).sum(-1)
  np.testing.assert_array_equal(nearest(z, codebook), distance.argmin(1))
