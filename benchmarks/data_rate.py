"""Pictures per second and core of the data pipeline, against Pillow alone on the same files:

  python benchmarks/data_rate.py [--folder=DIR] [--count=512] [--side=512] [--size=384] [--rounds=5]

Without a folder, it makes `count` JPEGs as large and as detailed as photographs. Both decode and
resize every file once a round, in turns, in one thread. Seconds are those of the processor, so
that other work on the machine counts for neither.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from tarjax.data.pipeline import make_batches

BATCH = 16


def write_pictures(folder: Path, count: int, side: int) -> None:
  """Noise with the spectrum of photographs, 1 / frequency, in three colours."""
  rng = np.random.default_rng(0)
  frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
  frequency[0, 0] = 1
  for i in range(count):
    waves = np.fft.rfft2(rng.normal(size=(side, side, 3)), axes=(0, 1)) / frequency[..., None]
    image = np.fft.irfft2(waves, (side, side), axes=(0, 1))
    image = 128 + 50 * image / image.std()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)


def bare(files: list[Path], size: int) -> float:
  began = time.process_time()
  for file in files:
    image = Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    np.asarray(image)
  return len(files) / (time.process_time() - began)


def ours(batches, count: int) -> float:
  began = time.process_time()
  for _ in range(count // BATCH):
    next(batches)
  return count // BATCH * BATCH / (time.process_time() - began)


def measure(folder: Path, size: int, rounds: int) -> None:
  files = sorted(folder.rglob("*.jpg"))
  sources = [dict(name="folder", path=str(folder.absolute()))]
  data = dict(sources=sources, format="images", size=size, threads=0)
  config = ConfigDict(dict(seed=0, batch=BATCH, workdir=str(folder), data=data))
  rates = []
  with contextlib.closing(make_batches(config)) as batches:
    next(batches)
    for _ in range(rounds):
      rates.append((bare(files, size), ours(batches, len(files))))
      print(f"Pillow {rates[-1][0]:.0f}, pipeline {rates[-1][1]:.0f} images/s and core", flush=True)
  alone, piped = (statistics.median(x) for x in zip(*rates, strict=True))
  print(f"median: Pillow {alone:.0f}, pipeline {piped:.0f}: {piped / alone:.0%}")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--folder", type=Path)
  for name, default in (("count", 512), ("side", 512), ("size", 384), ("rounds", 5)):
    parser.add_argument(f"--{name}", type=int, default=default)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as made:
    if not args.folder:
      write_pictures(Path(made), args.count, args.side)
    measure(args.folder or Path(made), args.size, args.rounds)


if __name__ == "__main__":
  main()
