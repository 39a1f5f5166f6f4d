"""AR-DTok from one resolution to the next: what becomes of the position table."""

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from tiny_world import parse

from tarjax import tasks
from tarjax.models.ar_dtok import resize_table
from tarjax.tasks.ar_dtok import DECODING


def test_code_rows_are_stretched_and_condition_rows_stay():
  rng = np.random.default_rng(0)
  table = rng.normal(size=(9 + 16 - 1, 5)).astype(np.float32)
  wide = resize_table(table, 9, 64)
  assert wide.shape == (9 + 64 - 1, 5) and wide.dtype == np.float32
  np.testing.assert_array_equal(wide[:9], table[:9])
  square = np.concatenate([table[9:], table[-1:]]).reshape(1, 4, 4, 5)
  want = torch.nn.functional.interpolate(
    torch.from_numpy(square).permute(0, 3, 1, 2), size=(8, 8), mode="bilinear", align_corners=False
  )
  want = want.permute(0, 2, 3, 1).reshape(64, 5).numpy()
  np.testing.assert_allclose(wide[9:], want[:-1], atol=1e-6)


def test_the_same_resolution_is_the_same_table():
  table = np.random.default_rng(0).normal(size=(9 + 16 - 1, 5)).astype(np.float32)
  np.testing.assert_allclose(resize_table(table, 9, 16), table, atol=1e-6)


@pytest.mark.parametrize("rows, length", [(9 + 15 - 1, 64), (9 + 16 - 1, 60), (8, 16)])
def test_tables_of_no_square_are_refused(rows, length):
  with pytest.raises(ValueError, match="cannot be resized"):
    resize_table(np.zeros((rows, 2)), 9, length)


@pytest.mark.parametrize("how", ["interp", "reinit"])
def test_both_policies(how, tmp_path):
  config = parse("ar_dtok:512_tiny", tmp_path, abs_pe_resize=how)
  task = tasks.make_task(config)
  small = np.random.default_rng(0).normal(size=(49 + 4 - 1, 32)).astype(np.float32)
  asked = []

  def load(spec, frozen=False):
    asked.append(spec)
    return small if spec.endswith(":positions") else dict.fromkeys((*DECODING, "embedding"), {})

  params = {"positions": np.ones((49 + 16 - 1, 32), np.float32), "embed": np.zeros(3)}
  new, _ = task.start(params, {}, load, tmp_path, None)
  assert new["embed"] is params["embed"]
  if how == "interp":
    np.testing.assert_array_equal(new["positions"], resize_table(small, 49, 16))
    assert "../ar_dtok_256_tiny:positions" in asked
  else:
    assert new["positions"] is params["positions"]


@pytest.mark.parametrize(
  "changes, words",
  [({"abs_pe_resize": "bicubic"}, "is none of"), ({"dont_load": []}, "needs a run in config.init")],
)
def test_bad_policies(changes, words, tmp_path):
  config = ConfigDict(parse("ar_dtok:512_tiny", tmp_path))
  config.update(changes)
  with pytest.raises(ValueError, match=words):
    tasks.make_task(config)
