r"""Draws pictures from a prompt, and from pictures when the prompt refers to some.

python -m tarjax.generate --model runs/digits --out out.png \
  --prompt "a red three left of a blue seven"
python -m tarjax.generate --model runs/digits --out out.png \
  --prompt "<image> left of a blue seven" --image in.png

With --best_of N the model draws N candidates for each picture, is asked of each whether it shows
the prompt, and keeps the likeliest; what it thought of all of them is in out.json, beside out.png.
"""

import argparse
import sys
from pathlib import Path

from tarjax.config import UserError, exit_code, write_json


def arguments(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="tarjax.generate", description=(__doc__ or "").splitlines()[0]
  )
  parser.add_argument("--model", required=True, help="folder with bundle.json")
  parser.add_argument("--prompt", required=True)
  parser.add_argument("--image", action="append", default=[], help="once per <image> of the prompt")
  parser.add_argument("--scale", type=int, help="1, 2 or 3: many, fewer, fewest visual words")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--detokenizer", default="ar", help="who paints: ar (AR-DTok) or dif")
  parser.add_argument("--num", type=int, default=1, help="pictures, side by side in the file")
  parser.add_argument("--best_of", type=int, help="candidates for each picture (Self Reflect)")
  parser.add_argument("--judge_feed", default="ids", help="they are judged by ids or reencoded")
  parser.add_argument("--temperature", type=float)
  parser.add_argument("--top_k", type=int)
  parser.add_argument("--top_p", type=float)
  parser.add_argument("--unconstrained", action="store_true", help="let the model choose any word")
  parser.add_argument("--out", required=True, help="picture file to write")
  return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
  """Checks what is cheap to check before anything is loaded."""
  if not args.prompt.strip():
    raise UserError("the prompt is empty")
  if args.scale not in (None, 1, 2, 3):
    raise UserError(f"scale must be 1, 2 or 3, not {args.scale}")
  if args.detokenizer not in ("ar", "dif"):
    raise UserError(f"--detokenizer must be ar or dif, not {args.detokenizer}")
  if args.num < 1:
    raise UserError(f"--num must be at least 1, not {args.num}")
  if args.best_of is not None and args.best_of < 1:
    raise UserError(f"--best_of must be at least 1, not {args.best_of}")
  if args.judge_feed not in ("ids", "reencoded"):
    raise UserError(f"--judge_feed must be ids or reencoded, not {args.judge_feed}")
  if args.seed < 0:
    raise UserError(f"--seed must not be negative, got {args.seed}")
  out = Path(args.out)
  if not out.parent.is_dir():
    raise UserError(f"cannot write {out}: there is no folder {out.parent}")
  from PIL import Image

  from tarjax.data.transforms import to_rgb

  if out.suffix.lower() not in Image.registered_extensions():
    raise UserError(f"cannot write {out}: {out.suffix or 'no ending'!r} is no picture format")
  images = [to_rgb(path) for path in args.image]
  from tarjax.pipeline import TarPipeline

  pipe = TarPipeline.load(args.model)
  drawn = draw(args, pipe, images)
  import numpy as np

  sheet = np.concatenate([d.image for d in drawn], 1)  # [y x*num 3]
  Image.fromarray(sheet).save(out)
  print(f"{out}: {args.num} x {drawn[0].image.shape[1]}x{drawn[0].image.shape[0]} px")


def draw(args: argparse.Namespace, pipe, images: list) -> list:
  """Pictures, the best of several if asked for; these are told of on the terminal and on disk."""
  asked = [args.prompt] * args.num, [images] * args.num
  how = dict(
    scale=args.scale,
    seeds=[args.seed + i for i in range(args.num)],
    constrained=not args.unconstrained,
    detokenizer=args.detokenizer,
    temperature=args.temperature,
    top_k=args.top_k,
    top_p=args.top_p,
  )
  if args.best_of is None:
    return pipe.generate(*asked, **how)
  from tarjax import self_reflect

  best = self_reflect.best_of(pipe, *asked, n=args.best_of, feed=args.judge_feed, **how)
  found = []
  for number, one in enumerate(best):
    p_yes = [round(float(p), 6) for p in one.p_yes]
    found.append({"seeds": one.seeds, "p_yes": p_yes, "chosen": one.best})
    print(f"picture {number}: candidate {one.best}, P(Yes) {' '.join(f'{p:.3f}' for p in p_yes)}")
  made = {"prompt": args.prompt} | self_reflect.settings(args.best_of, args.judge_feed)
  write_json(Path(args.out).with_suffix(".json"), made | {"pictures": found})
  return best


def main(argv: list[str]) -> int:
  return exit_code(lambda: run(arguments(argv)))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
