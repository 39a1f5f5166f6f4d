"""A run of a table that takes no time: python -m fake_run RUN [--steps N] [--code N] [--value X].

Each start adds a line to RUN/starts; each step is a file, so that a start goes on from the last.
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser()
  parser.add_argument("run", type=Path)
  parser.add_argument("--steps", type=int, default=1)
  parser.add_argument("--seconds", type=float, default=0.0, help="of a step")
  parser.add_argument("--code", type=int, default=0)
  parser.add_argument("--value", type=float, default=0.5)
  args = parser.parse_args(argv)
  stop: list[int] = []
  signal.signal(signal.SIGTERM, lambda n, _: stop.append(n))
  with open(args.run / "starts", "a") as f:
    f.write("start\n")
  for step in range(args.steps):
    mark = args.run / f"step{step}"
    if mark.exists():
      continue
    time.sleep(args.seconds)
    if stop:
      return 143
    mark.touch()
    print(f"step {step}", flush=True)
  if args.code:
    print("it ends badly", file=sys.stderr)
    return args.code
  (args.run / "done.json").write_text(json.dumps({"value": args.value}))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
