"""FID, sFID, Inception score, precision and recall of pictures against reference pictures.

  python -m tarjax.evals.fid samples.npz VIRTUAL_imagenet256_labeled.npz \\
      --inception classify_image_graph_def.pb --out fid.json

Both are .npz in ADM's layout; statistics that stand in the reference (mu, sigma, mu_s, sigma_s) are
taken from there. The numbers are made as one of three programs makes them, --like:

  adm             guided-diffusion's evaluator, which papers report: all five
  torch-fidelity  FID, Inception score (of ten shuffled parts), precision, recall
  pytorch-fid     FID, of pictures resized in PyTorch's way
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tarjax.config import UserError, exit_code, revision, write_json

VERSION = 1
PART = 5000  # pictures of one part of ADM's Inception score
LIKE = ("adm", "torch-fidelity", "pytorch-fid")


class Seen(NamedTuple):
  """What Inception makes of pictures: statistics of both maps, pool [n 2048], logits [n 1008]."""

  gaussians: dict[str, tuple[np.ndarray, np.ndarray]]
  pool: np.ndarray
  logits: np.ndarray


class Features:
  """Inception on all devices: `features(batches) -> Seen`, each picture counted once.

  Args:
    weights: TensorFlow's graph or the .pth made from it.
    like: whose way of resizing.
    batch: pictures at a time, over all devices.
  """

  def __init__(self, weights: str | Path, like: str = "adm", batch: int = 64):
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from tarjax.evals import inception_weights

    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    self.batch = -(-batch // jax.device_count()) * jax.device_count()
    self._place = NamedSharding(mesh, PartitionSpec("data"))
    params = inception_weights.load(weights)
    self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    self._resize = "pytorch" if like == "pytorch-fid" else "tensorflow"

  def __call__(self, batches: Iterable[np.ndarray]) -> Seen:
    """uint8[<=batch y x 3] each."""
    import jax

    from tarjax.evals import inception
    from tarjax.evals.frechet import Statistics

    found = {"pool": Statistics(), "spatial": Statistics()}
    pools, logits = [], []
    for images in batches:
      real = len(images)
      rows = np.minimum(np.arange(self.batch), real - 1)  # the last picture again
      images = jax.device_put(images[rows], self._place)
      out = inception.features(self._params, inception.resized(images, self._resize))
      seen = {name: np.asarray(x)[:real] for name, x in out.items()}
      for name, statistics in found.items():
        statistics.add(seen[name])
      pools.append(seen["pool"])
      logits.append(seen["logits"])
    gaussians = {name: statistics.gaussian() for name, statistics in found.items()}
    return Seen(gaussians, np.concatenate(pools), np.concatenate(logits))


def scores(samples: Seen, reference: Seen, like: str = "adm") -> dict[str, float]:
  """As the program `like` computes them, and as far as it does."""
  from tarjax.evals import frechet

  pair = samples.gaussians, reference.gaussians
  found = {"fid": frechet.frechet(pair[0]["pool"], pair[1]["pool"])}
  if like == "pytorch-fid":
    return found
  n = len(samples.logits)
  if like == "adm":
    found["sfid"] = frechet.frechet(pair[0]["spatial"], pair[1]["spatial"])
    parts = [np.arange(i, min(i + PART, n)) for i in range(0, n, PART)]
  else:
    order = np.random.RandomState(2020).permutation(n)
    parts = [order[i * n // 10 : (i + 1) * n // 10] for i in range(10)]
    parts = [part for part in parts if len(part)]
  found["inception_score"] = frechet.inception_score(samples.logits, parts)
  if min(n, len(reference.pool)) > frechet.NEIGHBOUR:
    both = frechet.precision_recall(reference.pool, samples.pool, half=like == "adm")
    found["precision"], found["recall"] = both
  return found


def arguments(argv: list[str]) -> argparse.Namespace:
  about = (__doc__ or "").splitlines()[0]
  parser = argparse.ArgumentParser(prog="tarjax.evals.fid", description=about)
  parser.add_argument("samples", help=".npz with arr_0 uint8[n y x 3]")
  parser.add_argument("reference", help="the same, perhaps with mu, sigma, mu_s, sigma_s")
  parser.add_argument("--inception", required=True, help="weights: the TensorFlow graph or .pth")
  parser.add_argument("--like", default="adm", choices=LIKE, help="whose numbers")
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--out", required=True, help="JSON file to write")
  return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
  from tarjax.evals import samples

  if args.batch < 1:
    raise UserError(f"--batch must be at least 1, not {args.batch}")
  if not Path(args.out).absolute().parent.is_dir():
    raise UserError(f"cannot write {args.out}: there is no folder {Path(args.out).parent}")
  for path in (args.samples, args.reference):  # a look, before the network is made
    next(samples.read(path, 1), None)
  features = Features(args.inception, args.like, args.batch)
  seen = [features(samples.read(p, features.batch)) for p in (args.samples, args.reference)]
  given = samples.gaussians(args.reference)
  seen[1] = seen[1]._replace(gaussians=seen[1].gaussians | given)
  found = scores(*seen, like=args.like)
  counts = {"samples": len(seen[0].pool), "reference": len(seen[1].pool)}
  from tarjax.evals.provenance import file_hash

  made = {"like": args.like, "scorer": VERSION, "revision": revision()}
  made |= {"inception": file_hash(args.inception), "statistics": sorted(given)}
  write_json(Path(args.out), {"scores": found, "pictures": counts, "provenance": made})
  for name, value in found.items():
    print(f"{name:20}{value:12.5g}")


def main(argv: list[str]) -> int:
  return exit_code(lambda: run(arguments(argv)))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
