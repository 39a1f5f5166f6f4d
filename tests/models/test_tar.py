"""How the tables of a text model are widened by visual words."""

import numpy as np
import pytest

from tarjax.models import tar

TEXT, CODES, WIDTH = 7, 4, 6


@pytest.fixture
def llm():
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(TEXT + 3, WIDTH)).astype(np.float32)  # three padding rows, to be dropped
  head = rng.normal(size=(WIDTH, TEXT + 3)).astype(np.float32)
  return {"embed": {"embedding": rows}, "lm_head": {"kernel": head}, "norm": {"scale": rows[0]}}


def widen(llm, how, **kwargs):
  rows = tar.padded_rows(TEXT, CODES, 8)
  return tar.widen(llm, how, text_rows=TEXT, rows=rows, codes=CODES, **kwargs)


def test_rows_in_order(llm):
  codebook = np.arange(CODES * WIDTH, dtype=np.float32).reshape(CODES, WIDTH)
  got = widen(llm, "codebook", codebook=codebook)["embed"]["embedding"]
  text = llm["embed"]["embedding"][:TEXT]
  assert got.shape == (16, WIDTH)
  np.testing.assert_array_equal(got[:TEXT], text)
  np.testing.assert_array_equal(got[TEXT : TEXT + tar.MARKS], np.tile(text.mean(0), (5, 1)))
  np.testing.assert_array_equal(got[TEXT + 5 : TEXT + 5 + CODES], codebook)
  assert not got[TEXT + 5 + CODES :].any()


def test_other_starts(llm):
  text = llm["embed"]["embedding"][:TEXT]

  def image_rows(how, **kwargs):
    return widen(llm, how, **kwargs)["embed"]["embedding"][TEXT + 5 : TEXT + 5 + CODES]

  np.testing.assert_array_equal(image_rows("mean"), np.tile(text.mean(0), (CODES, 1)))
  np.testing.assert_array_equal(
    image_rows("selected_rows", selected=[6, 0, 2, 3]), text[[6, 0, 2, 3]]
  )
  drawn = image_rows("random", seed=3)
  assert 0.005 < drawn.std() < 0.05
  np.testing.assert_array_equal(drawn, image_rows("random", seed=3))
  assert (drawn != image_rows("random", seed=4)).all()


def test_untied_head_starts_at_its_mean(llm):
  got = widen(llm, "random")["lm_head"]["kernel"]  # [d v]
  text = llm["lm_head"]["kernel"][:, :TEXT]
  np.testing.assert_array_equal(got[:, :TEXT], text)
  means = np.tile(text.mean(1)[:, None], (1, CODES))
  np.testing.assert_allclose(got[:, TEXT + 5 : TEXT + 5 + CODES], means, rtol=1e-6)


def test_a_width_mismatch_is_never_silent(llm):
  with pytest.raises(ValueError, match="3 wide and the language model 6"):
    widen(llm, "codebook", codebook=np.zeros((CODES, 3), np.float32))
  with pytest.raises(ValueError, match="embed_init='codebok'"):
    widen(llm, "codebok")
