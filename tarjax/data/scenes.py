"""Scenes of one to four handwritten digits in six colours on a 48 x 48 canvas.

The handwriting is the UCI set of 1,797 scans that scikit-learn carries, so that every machine has
it. Scan i is held out when i % 5 == 0: split "train" draws from the other four fifths, split
"test" from the held-out fifth, and no picture mixes them.
"""

import dataclasses
import functools
import random
from collections.abc import Sequence

import numpy as np

SIDE = 48
SIZES = (14, 22)  # side of an upsampled scan in pixels, both ends included
DOUBLED = 16  # most scans are shown with twice their pixels: two by two visual words of scale 2
OTHERS = 0.1  # share of scans of any other size
GAP = 2  # free pixels between two digits, at least
STEP = 8  # glyphs stand on a lattice of this many pixels: one phase per visual word of scale 2
CUTS = (24, 32)  # where a canvas may be parted
MOST = 4  # digits in one scene
SPLITS = ("train", "test")
RELATIONS = ("left", "right", "above", "below")
STEEP = 1.25  # a relation is unambiguous when one centre offset is this many times the other
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GROUND = (18, 18, 22)  # the dark paper
# Six hues about 60 degrees apart, so that blur and quantisation do not turn one into another.
COLOURS = {
  "red": (236, 48, 44),
  "yellow": (240, 212, 44),
  "green": (56, 200, 72),
  "cyan": (52, 212, 216),
  "blue": (68, 88, 255),
  "purple": (208, 72, 224),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Glyph:
  """One inked scan: the square [y, y + size) x [x, x + size) of the canvas."""

  label: int
  colour: str
  scan: int
  x: int
  y: int
  size: int

  @property
  def cx(self) -> float:
    return self.x + self.size / 2

  @property
  def cy(self) -> float:
    return self.y + self.size / 2


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
  """Glyphs whose squares do not touch."""

  glyphs: tuple[Glyph, ...]


def stream(*key: object) -> random.Random:
  """A generator that is a pure function of its key, in any thread and process.

  Seeding with text hashes it with SHA-512; it takes 10 us, a tenth of a NumPy bit generator with
  its SeedSequence and first calls, and scalar draws are several times faster as well.
  """
  return random.Random("/".join(map(str, key)))


@functools.cache
def scans() -> tuple[np.ndarray, np.ndarray]:
  """The handwriting: float32[1797 8 8] in [0, 1] and its labels int64[1797]."""
  from sklearn.datasets import load_digits  # takes a second, and most of the package needs none

  pixels, labels = load_digits(return_X_y=True)
  return np.asarray(pixels, np.float32).reshape(-1, 8, 8) / 16, np.asarray(labels)


@functools.cache
def scans_of(label: int, split: str) -> tuple[int, ...]:
  """Indices of the scans of one digit in one split.

  Raises:
    ValueError: an unknown split.
  """
  if split not in SPLITS:
    raise ValueError(f"unknown split {split!r}; the splits are {list(SPLITS)}")
  held_out = split == "test"
  return tuple(i for i, k in enumerate(scans()[1]) if k == label and (i % 5 == 0) == held_out)


@functools.cache
def upsampled(size: int) -> np.ndarray:
  """Every scan as ink coverage float32[1797 size size] in [0, 1], by cubic interpolation."""
  at = (np.arange(size) + 0.5) * 8 / size - 0.5
  far = np.abs(at[:, None] - np.arange(-2, 10)[None])  # [size 12]: two cells of border either side
  near = 1 - 2.5 * far**2 + 1.5 * far**3
  tail = 2 - 4 * far + 2.5 * far**2 - 0.5 * far**3
  weight = np.where(far < 1, near, np.where(far < 2, tail, 0)).astype(np.float32)[:, 2:10]
  ink = np.einsum("yp,npq,xq->nyx", weight, scans()[0], weight, optimize=True)
  return np.clip((ink - 0.12) / 0.76, 0, 1)  # firm strokes, clean ground


def relation(a: Glyph, b: Glyph) -> str | None:
  """Where a lies as seen from b ("left", ...), or None when that could be argued about."""
  dx, dy = a.cx - b.cx, a.cy - b.cy
  if abs(dx) >= STEEP * abs(dy) and (a.x + a.size <= b.x or b.x + b.size <= a.x):
    return "left" if dx < 0 else "right"
  if abs(dy) >= STEEP * abs(dx) and (a.y + a.size <= b.y or b.y + b.size <= a.y):
    return "above" if dy < 0 else "below"
  return None


def draw_scene(
  rng: random.Random,
  objects: Sequence[tuple[int, str | None]],
  where: str | None = None,
  split: str = "train",
) -> Scene:
  """Composes a scene of exactly these objects, (label, colour or None for any).

  Two objects always stand in an unambiguous relation; `where` chooses it for objects[0] as seen
  from objects[1]. Without it, objects stand in reading order: as one lists what one sees, and as a
  model writes the visual words of it.

  Raises:
    ValueError: no objects or more than four, or a relation among other than two.
  """
  if not 1 <= len(objects) <= MOST:
    raise ValueError(f"a scene has 1 to {MOST} digits, not {len(objects)}")
  if where is not None and (len(objects) != 2 or where not in RELATIONS):
    raise ValueError(f"relation {where!r} needs two objects and must be one of {list(RELATIONS)}")
  vertical = where in ("left", "right") if where else rng.random() < 0.5
  spots = [_spot(rng, cell) for cell in _cells(rng, len(objects), vertical)]
  if len(objects) == 2:
    spots[1] = _align(rng, spots[0], spots[1], vertical)
  if where:
    spots = spots if where in ("left", "above") else spots[::-1]
  else:
    spots.sort(key=lambda spot: (spot[1], spot[0]))
  glyphs = []
  for (label, colour), (x, y, size) in zip(objects, spots, strict=True):
    colour = colour or rng.choice(tuple(COLOURS))
    glyphs.append(Glyph(label, colour, rng.choice(scans_of(label, split)), x, y, size))
  return Scene(tuple(glyphs))


def _cells(rng: random.Random, count: int, vertical: bool) -> list[tuple[int, int, int, int]]:
  """Cuts the canvas into `count` cells (x0, y0, x1, y1), each wide enough for a doubled scan."""
  box = (0, 0, SIDE, SIDE)
  if count == 1:
    return [box]
  if count == 2:
    return _cut(box, vertical, rng.choice(CUTS))
  halves = _cut(box, vertical, SIDE // 2)
  rng.shuffle(halves)
  cells = _cut(halves[0], not vertical, rng.choice(CUTS))
  return cells + (_cut(halves[1], not vertical, rng.choice(CUTS)) if count == 4 else halves[1:])


def _cut(box: tuple[int, int, int, int], vertical: bool, at: int) -> list:
  x0, y0, x1, y1 = box
  if vertical:
    return [(x0, y0, at - GAP, y1), (at, y0, x1, y1)]
  return [(x0, y0, x1, at - GAP), (x0, at, x1, y1)]


def _spot(rng: random.Random, cell: tuple[int, int, int, int]) -> tuple[int, int, int]:
  """A square (x, y, size) anywhere on the cell's lattice."""
  x0, y0, x1, y1 = cell
  size = DOUBLED
  if rng.random() < OTHERS:
    size = rng.randint(SIZES[0], min(SIZES[1], x1 - x0, y1 - y0))
  return (
    rng.choice(range(x0, x1 - size + 1, STEP)),
    rng.choice(range(y0, y1 - size + 1, STEP)),
    size,
  )


def _align(rng: random.Random, a: tuple, b: tuple, vertical: bool) -> tuple[int, int, int]:
  """Slides b along the cut until its relation to a is unambiguous."""
  along, across = (0, 1) if vertical else (1, 0)
  apart = b[along] + b[2] / 2 - a[along] - a[2] / 2
  middle = a[across] + (a[2] - b[2]) / 2
  low = max(0, int(np.ceil(middle - apart / STEEP)))
  high = min(SIDE - b[2], int(np.floor(middle + apart / STEEP)))
  places = [p for p in range(0, high + 1, STEP) if p >= low]
  place = b[across] if b[across] in places else rng.choice(places)
  return (b[0], place, b[2]) if vertical else (place, b[1], b[2])


def vary(rng: random.Random, scene: Scene, split: str = "train") -> Scene:
  """The same labels, colours and rough layout in other handwriting (paper Sec. 3.4, I2I)."""
  glyphs = list(scene.glyphs)
  for i, glyph in enumerate(glyphs):
    others = [k for k in scans_of(glyph.label, split) if k != glyph.scan]
    x, y = (at + rng.choice((-STEP, 0, 0, STEP)) for at in (glyph.x, glyph.y))
    moved = dataclasses.replace(glyph, scan=rng.choice(others), x=x, y=y)
    rest = glyphs[:i] + glyphs[i + 1 :]
    fits = min(x, y) >= 0 and max(x, y) + glyph.size <= SIDE
    kept = all(relation(moved, other) == relation(glyph, other) for other in rest)
    if not (fits and kept) or any(touches(moved, other) for other in rest):
      moved = dataclasses.replace(glyph, scan=moved.scan)
    glyphs[i] = moved
  return Scene(tuple(glyphs))


def regions(scene: Scene, side: int) -> np.ndarray:
  """What stands in each square of `side` pixels, in raster order: int32[l 2].

  The digit, counted from 1, and the colour, counted from 1 in the order of COLOURS, of the glyph
  that covers at least a third of the square; zeros where none does.
  """
  n, inks = SIDE // side, tuple(COLOURS)
  shown = np.zeros((n, n, 2), np.int32)
  edges = np.arange(n) * side
  for g in scene.glyphs:
    down, along = (
      np.clip(np.minimum(edges + side, at + g.size) - np.maximum(edges, at), 0, None)
      for at in (g.y, g.x)
    )
    shown[np.outer(down, along) * 3 >= side * side] = g.label + 1, inks.index(g.colour) + 1
  return shown.reshape(-1, 2)


def touches(a: Glyph, b: Glyph) -> bool:
  """Whether two squares are closer than the free pixels that every scene keeps."""
  apart_x = a.x + a.size + GAP <= b.x or b.x + b.size + GAP <= a.x
  apart_y = a.y + a.size + GAP <= b.y or b.y + b.size + GAP <= a.y
  return not (apart_x or apart_y)


def render(scene: Scene) -> np.ndarray:
  """Paints a scene: uint8[48 48 3]."""
  ground = np.array(GROUND, np.float32)
  image = np.empty((SIDE, SIDE, 3), np.float32)
  image[:] = ground
  for g in scene.glyphs:
    ink = upsampled(g.size)[g.scan]  # [y x]
    image[g.y : g.y + g.size, g.x : g.x + g.size] += ink[:, :, None] * (_ink(g.colour) - ground)
  return (image + 0.5).astype(np.uint8)


@functools.cache
def _ink(colour: str) -> np.ndarray:
  return np.array(COLOURS[colour], np.float32)
