"""Splits a picture of composed digits into single digits, by colour and connected components."""

import functools

import numpy as np
from scipy import ndimage

from tarjax.data.scenes import COLOURS, SIZES

INK = 0.36  # coverage from which a pixel belongs to a stroke
TALL = 10  # pixels: less is a part of a digit, or dirt
WIDE = SIZES[1] + 2  # pixels: more is two digits in one
GRID = 12  # the classifier sees a digit as GRID x GRID coverages
GAP = 3  # pixels between two parts of one digit, at most

Box = tuple[int, int, int, int]  # x0, y0, x1, y1; the ends are outside


@functools.cache
def _inks() -> np.ndarray:
  """The six inks as float32[6 3]."""
  return np.array(list(COLOURS.values()), np.float32)


def segment(image: np.ndarray) -> list[tuple[str, np.ndarray, Box]]:
  """Splits a picture uint8[y x 3] into digits: (colour, coverage float32[y x], box) of each.

  Every pixel is a mixture of the ground, the median colour, and the ink whose direction is nearest.
  Strokes of one ink that touch are a part; small parts join a near part of their colour or are
  dropped.
  """
  pixels = ndimage.gaussian_filter(image.astype(np.float32), (0.4, 0.4, 0))
  ground = np.median(pixels[::2, ::2].reshape(-1, 3), axis=0)
  offset, inks = pixels - ground, _inks() - ground  # [y x 3], [6 3]
  lengths = np.sqrt((inks**2).sum(1)).clip(1)
  along = offset @ (inks / lengths[:, None]).T  # [y x 6]
  colour = along.argmax(-1)
  coverage = np.clip(along.max(-1) / lengths[colour], 0, 1)
  present = np.bincount(colour[coverage > INK], minlength=len(inks))
  digits = []
  for index in np.flatnonzero(present >= TALL):
    name = tuple(COLOURS)[index]
    for mask, (x0, y0, x1, y1) in _merge(_split(np.where(colour == index, coverage, 0), INK)):
      # Thin rims of a stroke mix with the ground and may lean to another ink: take all coverage.
      near = slice(max(y0 - 1, 0), y1 + 1), slice(max(x0 - 1, 0), x1 + 1)
      ink = np.zeros_like(coverage)
      ink[near] = coverage[near] * ndimage.binary_dilation(mask[near])
      digits.append((name, ink, (x0, y0, x1, y1)))
  return digits


def _split(ink: np.ndarray, least: float) -> list[tuple[np.ndarray, Box]]:
  """Connected parts bool[y x] of a coverage; what is too large for a digit is cut at more ink."""
  labels, _ = ndimage.label(ink > least, np.ones((3, 3)))  # type: ignore[misc]  # stubs: int only
  parts = []
  for k, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
    mask, box = labels == k, (columns.start, rows.start, columns.stop, rows.stop)
    if _extent(box) > WIDE and least < 0.7:
      parts += _split(np.where(mask, ink, 0), least + 0.1)
    elif np.count_nonzero(mask) >= 3:
      parts.append((mask, box))
  return parts


def _merge(parts: list[tuple[np.ndarray, Box]]) -> list[tuple[np.ndarray, Box]]:
  """Joins broken strokes: a small part goes to the nearest part that can take it."""
  whole: list[tuple[np.ndarray, Box]] = []
  for mask, box in sorted(parts, key=lambda part: -_extent(part[1])):
    near = []
    if _extent(box) < TALL:
      fits = [i for i, (_, other) in enumerate(whole) if _extent(_union(box, other)) <= WIDE]
      near = [(d, i) for i in fits if (d := _distance(mask, whole[i][0])) <= GAP]
    if near:
      other, other_box = whole[i := min(near)[1]]
      whole[i] = (mask | other, _union(box, other_box))
    else:
      whole.append((mask, box))
  return [part for part in whole if _extent(part[1]) >= TALL]


def _extent(box: Box) -> int:
  return max(box[2] - box[0], box[3] - box[1])


def _union(a: Box, b: Box) -> Box:
  return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _distance(a: np.ndarray, b: np.ndarray) -> float:
  p, q = np.argwhere(a), np.argwhere(b)
  return float(np.sqrt(((p[:, None] - q[None]) ** 2).sum(-1).min()))


def crop(ink: np.ndarray, box: Box) -> np.ndarray:
  """A digit at one size, its proportions kept: float32[GRID * GRID] coverages.

  The square around the box is averaged over GRID x GRID cells by linear interpolation.
  """
  x0, y0, x1, y1 = box
  side = max(x1 - x0, y1 - y0) + 1
  at = (np.arange(GRID) + 0.5) / GRID * side - side / 2
  rows, columns = ((y0 + y1 - 1) / 2 + at, (x0 + x1 - 1) / 2 + at)
  ys, xs = (
    _tent(where, n, side / GRID) for where, n in zip((rows, columns), ink.shape, strict=True)
  )
  return (ys @ ink @ xs.T).ravel().astype(np.float32)


def _tent(where: np.ndarray, size: int, width: float) -> np.ndarray:
  """Interpolation weights [where size], tents as wide as a cell but at least a pixel."""
  reach = max(width, 1.0)
  weight = np.maximum(0, 1 - np.abs(where[:, None] - np.arange(size)[None]) / reach)
  return weight / reach
