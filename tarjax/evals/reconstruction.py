"""PSNR, SSIM and LPIPS of reconstructions, each against its original.

  python -m tarjax.evals.reconstruction rec.npz originals.npz --lpips runs/tar/lpips --out rec.json

Both are .npz in ADM's layout, in the same order; `tarjax.evals.fid` compares the two as sets.
Without --lpips, an import of the published weights, there is no LPIPS.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tarjax.config import UserError, exit_code, revision, write_json
from tarjax.evals import pictures, samples

VERSION = 1
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def make_lpips(run: str | Path) -> Score:
  """LPIPS by an imported run's weights, in full float32: uint8[n y x 3] each -> float64[n].

  Raises:
    UserError: no such run, or one of another network.
  """
  import jax

  from tarjax import checkpoint
  from tarjax.models.lpips import Lpips, LpipsConfig
  from tarjax.tasks.inputs import pixels

  config = checkpoint.read_config(run)
  if config.task != "lpips":
    raise UserError(f"{run} is a run of {config.task}, not of LPIPS: import its weights first")
  model, params = Lpips(LpipsConfig(**config.model)), checkpoint.load(str(run))

  @jax.jit
  def distance(params, a, b):
    with jax.default_matmul_precision("highest"):
      return model.apply({"params": params}, pixels(a), pixels(b))

  return lambda a, b: np.asarray(distance(params, a, b), np.float64)


def score(reconstructions: str, originals: str, scores: dict[str, Score], batch: int):
  """{name: mean over the pairs} and how many pairs there are.

  Raises:
    UserError: files that do not hold as many pictures of the same size.
  """
  found: dict[str, list[np.ndarray]] = {name: [] for name in scores}
  both = (samples.read(path, batch) for path in (reconstructions, originals))
  for a, b in itertools.zip_longest(*both):
    if a is None or b is None or a.shape != b.shape:
      sizes = " and ".join("none" if x is None else str(x.shape) for x in (a, b))
      raise UserError(f"{reconstructions} and {originals} are not of the same pictures: {sizes}")
    for name, of in scores.items():
      found[name].append(of(a, b))
  values = {name: np.concatenate(each) for name, each in found.items() if each}
  if not values:
    raise UserError(f"{originals} holds no pictures")
  return {name: float(x.mean()) for name, x in values.items()}, len(next(iter(values.values())))


def arguments(argv: list[str]) -> argparse.Namespace:
  about = (__doc__ or "").splitlines()[0]
  parser = argparse.ArgumentParser(prog="tarjax.evals.reconstruction", description=about)
  parser.add_argument("reconstructions", help=".npz with arr_0 uint8[n y x 3]")
  parser.add_argument("originals", help="the same, in the same order")
  parser.add_argument("--lpips", metavar="DIR", help="the run that LPIPS's weights are imported to")
  parser.add_argument("--batch", type=int, default=64, help="pairs at a time")
  parser.add_argument("--out", required=True, help="JSON file to write")
  return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
  if args.batch < 1:
    raise UserError(f"--batch must be at least 1, not {args.batch}")
  if not Path(args.out).absolute().parent.is_dir():
    raise UserError(f"cannot write {args.out}: there is no folder {Path(args.out).parent}")
  scores: dict[str, Score] = {"psnr": pictures.psnr, "ssim": pictures.ssim}
  if args.lpips:
    scores["lpips"] = make_lpips(args.lpips)
  found, count = score(args.reconstructions, args.originals, scores, args.batch)
  made = {"scorer": VERSION, "revision": revision(), "lpips": args.lpips}
  write_json(Path(args.out), {"scores": found, "pictures": count, "provenance": made})
  for name, value in found.items():
    print(f"{name:20}{value:12.5g}")


def main(argv: list[str]) -> int:
  return exit_code(lambda: run(arguments(argv)))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
