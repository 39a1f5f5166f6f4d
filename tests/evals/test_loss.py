import itertools

import numpy as np
import pytest

from tarjax.evals.loss import Evaluator


def test_means_over_the_same_batches_at_every_call():
  calls = []

  def batches():
    calls.append(1)
    return itertools.count()

  def predict(state, batch, index, static):
    assert batch == index
    return {"loss": np.float32(state * batch), "error": np.float32(static["scale"])}

  evaluator = Evaluator(predict, batches=batches, static=lambda i: {"scale": 1 + i % 2}, count=5)
  first, second = dict(evaluator.run(2.0)), dict(evaluator.run(3.0))
  assert calls == [1]
  assert first["val/loss"] == pytest.approx(2 * 2.0) and second["val/loss"] == pytest.approx(6.0)
  assert first["val/error"] == pytest.approx(7 / 5)
  assert first["val/loss_scale1"] == pytest.approx(2 * (0 + 2 + 4) / 3)
  assert first["val/loss_scale2"] == pytest.approx(2 * (1 + 3) / 2)


def test_a_short_held_out_split_is_used_up_once():
  seen = []

  def predict(state, batch, index, static):
    seen.append(batch)
    return {"loss": 1.0}

  evaluator = Evaluator(predict, batches=lambda: [7, 8], static=lambda i: {}, count=5)
  assert dict(evaluator.run(None)) == {"val/loss": 1.0} and seen == [7, 8]
