import numpy as np
import pytest

from tarjax.evals import intervals


def share(sums):
  return {"share": intervals.ratio(sums["right"], sums["n"]), "none": sums["other"]}


def test_the_interval_of_a_share_is_the_binomial_one():
  counts = [{"n": 1, "right": i < 300} for i in range(1000)]
  found = intervals.score(counts, share)
  half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
  assert found["share"]["value"] == 0.3
  assert found["share"]["low"] == pytest.approx(0.3 - half, abs=4e-3)
  assert found["share"]["high"] == pytest.approx(0.3 + half, abs=4e-3)
  assert found["none"] == {"value": 0, "low": 0, "high": 0}
  assert intervals.score(counts, share) == found != intervals.score(counts, share, seed=1)


def test_units_are_drawn_whole():
  """Ten questions that are right or wrong together are no surer than one."""
  alone = [{"n": 1, "right": i % 2} for i in range(40)]
  tenfold = [{"n": 10, "right": 10 * (i % 2)} for i in range(40)]
  assert intervals.score(alone, share) == intervals.score(tenfold, share)


def test_nothing_scores_nothing():
  assert intervals.score([], share)["share"] == {"value": 0, "low": 0, "high": 0}
