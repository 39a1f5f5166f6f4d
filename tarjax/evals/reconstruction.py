"""Pictures through the tokenizers and back: how close they come, and which codes are in use.

What a pipeline's components allow:

    vqvae/psnr ssim usage perplexity           the VQVAE alone
    ta_tok/scale<s>/cosine usage perplexity    TA-Tok alone: features against the teacher's
    scale<s>/psnr ssim                         TA-Tok, AR-DTok and the VQVAE
    dc_ae/psnr ssim, dif<s>/psnr ssim          the DC-AE alone, and under TA-Tok and Dif-DTok

Distances are means over pictures, at the size of the pipeline's canvas.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tarjax.config import UserError
from tarjax.data import sources, transforms
from tarjax.data.damage import Damaged
from tarjax.evals import intervals, pictures

SCALES = (1, 2, 3)
# (uint8[n y x 3], uint8[n y x 3]) -> float[n]: pictures and their reconstructions.
DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
  "psnr": pictures.psnr,
  "ssim": pictures.ssim,
}
RESIZE = {"crop": transforms.center_crop, "squash": transforms.squash}


class Evaluator:
  """`run(pipe)` yields (name, value) as listed above.

  Args:
    source: records with images, the first of each is taken; damaged ones are passed over.
    count: of pictures; 0 is all.
    batch: pictures at a time.
    scales: pool scales of TA-Tok.
    seed: picture i is drawn with seed + i.
    resize: how pictures become squares, "crop" or "squash".
    distances: by name.
    say: told of progress, in a sentence.

  Raises:
    ValueError: an unknown resize or scale, or an endless source without a count.
  """

  def __init__(
    self,
    source: sources.Source,
    *,
    count: int = 0,
    batch: int = 64,
    scales: Sequence[int] = SCALES,
    seed: int = 0,
    resize: str = "crop",
    distances: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = DISTANCES,
    say: Callable[[str], None] = lambda text: None,
  ):
    if resize not in RESIZE or not set(scales) <= set(SCALES):
      raise ValueError(f"resize={resize!r}, scales={scales}: need one of {list(RESIZE)}, {SCALES}")
    if not count and len(source) >= 1 << 31:
      raise ValueError("the source is endless: say how many pictures are to be read")
    self.source, self.batch, self.scales, self.seed = source, batch, scales, seed
    self.resize, self.distances, self.say = RESIZE[resize], distances, say
    self.count = min(count or len(source), len(source))
    self.damaged = 0

  def run(self, pipe) -> Iterator[tuple[str, float]]:
    for name, score in self.score(pipe).items():
      yield name, score["value"]

  def score(self, pipe) -> dict[str, dict[str, float]]:
    """{name: {"value"}}, and for distances {"low", "high"}, the ends of a 95% interval.

    Raises:
      UserError: no picture could be read.
    """
    rows: list[dict[str, float]] = []  # per picture
    counts: dict[str, np.ndarray] = {}  # per codebook
    read = self._images()
    while images := list(itertools.islice(read, self.batch)):
      side = pipe.bundle["preprocessing"]["canvas"]
      images = np.stack([self.resize(image, side) for image in images])
      found, ids = self._measure(pipe, images, len(rows))
      rows += [{k: float(x[i]) for k, x in found.items()} | {"n": 1} for i in range(len(images))]
      for name, (codes, size) in ids.items():
        counts[name] = counts.get(name, 0) + np.bincount(codes.ravel(), minlength=size)
      self.say(f"{len(rows)} of {self.count} pictures")
    if not rows:
      raise UserError(f"none of {self.count} records has a picture that can be read")
    scores = intervals.score(rows, lambda s: {k: s[k] / s["n"] for k in rows[0] if k != "n"})
    for name, chosen in counts.items():
      scores |= {f"{name}/{k}": {"value": v} for k, v in pictures.spread_of(chosen).items()}
    return scores

  def _images(self) -> Iterator[np.ndarray]:
    """uint8[y x 3] each."""
    self.damaged = 0
    for i in range(self.count):
      try:
        image = self.source[i]["images"][0]
      except (Damaged, KeyError, IndexError):
        self.damaged += 1
        continue
      yield image

  def _measure(self, pipe, images: np.ndarray, first: int) -> tuple[dict, dict]:
    """Values per picture {name: float[n]}, and codes {name: (int[n ...], number of codes)}."""
    seeds = [self.seed + first + i for i in range(len(images))]
    found: dict[str, np.ndarray] = {}
    ids: dict[str, tuple[np.ndarray, int]] = {}
    versions: dict[str, np.ndarray] = {}
    if pipe.vqvae:
      versions["vqvae"] = pipe.reconstruct_vqvae(images)
      ids["vqvae"] = pipe.encode_vqvae(images), pipe.vqvae.config.codes
    if pipe.dif:
      versions["dc_ae"] = pipe.reconstruct_dc_ae(images)
    for scale in self.scales if pipe.ta_tok else ():
      name = f"ta_tok/scale{scale}"
      codes = pipe.encode(images, scale)
      ids[name] = codes, pipe.codes
      pairs = zip(*pipe.features(images, scale), strict=True)
      found[f"{name}/cosine"] = np.array([pictures.cosine(*pair) for pair in pairs])
      if pipe.ar_dtok and pipe.vqvae:
        versions[f"scale{scale}"] = pipe.draw(codes, seeds)
      if pipe.dif:
        versions[f"dif{scale}"] = pipe.draw(codes, seeds, "dif")
    for name, drawn in versions.items():
      for distance, function in self.distances.items():
        found[f"{name}/{distance}"] = function(images, drawn)
    return found, ids


def make_source(text: str) -> Any:
  """A folder of pictures, or NAME:PATH with a format of the README's table -> source.

  Raises:
    UserError: no such folder or format, or files that cannot be read.
  """
  name, _, path = text.partition(":")
  spec = {"name": name, "path": path} if name in sources.SOURCES else {"name": "folder"}
  try:
    return sources.make_source({"path": text} | spec, workdir=".", split="test", seed=0)
  except (ValueError, OSError) as e:
    raise UserError(f"the pictures {text} cannot be read: {e}") from e
