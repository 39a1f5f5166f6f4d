"""Answers a question about a picture, or describes it.

python -m tarjax.describe --model runs/digits --image in.png
python -m tarjax.describe --model runs/digits --image in.png --question "What colour is the three?"
"""

import argparse
import sys

from tarjax.config import UserError, exit_code

QUESTION = "Describe the image."


def arguments(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="tarjax.describe", description=(__doc__ or "").splitlines()[0]
  )
  parser.add_argument("--model", required=True, help="folder with bundle.json")
  parser.add_argument("--image", required=True)
  parser.add_argument("--question", default=QUESTION)
  parser.add_argument("--scale", type=int, help="1, 2 or 3: many, fewer, fewest visual words")
  parser.add_argument("--max_new", type=int, default=64, help="words at most")
  return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
  """Checks what is cheap to check before anything is loaded."""
  if not args.question.strip():
    raise UserError("the question is empty")
  if args.scale not in (None, 1, 2, 3):
    raise UserError(f"scale must be 1, 2 or 3, not {args.scale}")
  if args.max_new < 1:
    raise UserError(f"--max_new must be at least 1, not {args.max_new}")
  from tarjax.data.transforms import to_rgb

  image = to_rgb(args.image)
  from tarjax.pipeline import TarPipeline

  pipe = TarPipeline.load(args.model)
  print(pipe.describe([image], [args.question], scale=args.scale, max_new=args.max_new)[0])


def main(argv: list[str]) -> int:
  return exit_code(lambda: run(arguments(argv)))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
