import numpy as np
import pytest

from tarjax.evals import pictures


@pytest.fixture(scope="module")
def pair():
  rng = np.random.default_rng(0)
  a = rng.integers(0, 256, (24, 20, 3)).astype(np.uint8)
  b = np.clip(a.astype(int) + rng.integers(-40, 41, a.shape), 0, 255).astype(np.uint8)
  return a[None], b[None]


def test_against_scikit_image(pair):
  """Its structural_similarity with gaussian_weights, sigma 1.5, population covariance."""
  assert pictures.ssim(*pair)[0] == pytest.approx(0.9533569893793109, rel=1e-9)
  assert pictures.psnr(*pair)[0] == pytest.approx(21.064236125234025, rel=1e-9)


def test_each_picture_has_its_own_number(pair):
  a, b = pair
  both = pictures.ssim(np.concatenate([a, a]), np.concatenate([a, b]))
  assert both[0] == pytest.approx(1) and both[1] == pytest.approx(pictures.ssim(a, b)[0])
  assert pictures.psnr(a, a)[0] == pytest.approx(10 * np.log10(255**2 / 1e-2))


def test_ssim_needs_a_window():
  small = np.zeros((1, 10, 20, 3), np.uint8)
  with pytest.raises(ValueError, match="11 pixels"):
    pictures.ssim(small, small)


def test_cosine_and_spread():
  x = np.array([[3.0, 4.0], [1.0, 0.0]])
  assert pictures.cosine(x, x * [[2.0], [-1.0]]) == pytest.approx(0)
  assert pictures.spread(np.array([0, 0, 1, 1]), 8) == {"usage": 0.25, "perplexity": 2.0}
