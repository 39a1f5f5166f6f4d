"""Released checkpoints in and out, bit for bit.

python -m tarjax.convert import Qwen2.5-1.5B-Instruct --to runs/qwen
python -m tarjax.convert import vgg16-397923af.pth vgg.pth --to runs/lpips
python -m tarjax.convert export runs/qwen --to Qwen2.5-again
python -m tarjax.convert inspect runs/qwen
python -m tarjax.convert init-tar --llm runs/qwen --ta-tok runs/ta_tok --to runs/tar
python -m tarjax.convert select-codebook --llm runs/qwen --k 65536 --to runs/selection
python -m tarjax.convert recover-selection --ta-tok runs/ta_tok --llm runs/qwen --to ids.npy
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from tarjax.config import UserError, exit_code


def import_(args: argparse.Namespace) -> None:
  """Files, a folder or a hub repository -> a run directory."""
  from tarjax.convert.hub import fetch
  from tarjax.convert.importing import import_source
  from tarjax.convert.plan import total
  from tarjax.convert.sana import import_pipeline, is_pipeline
  from tarjax.convert.tensors import open_source, together

  fetched = [fetch(name, args.revision) for name in args.source]
  path, revision = fetched[0]
  if len(fetched) == 1 and is_pipeline(path):
    print("\n".join(import_pipeline(path, Path(args.to), args.source[0], revision)))
    return
  named = zip(fetched, args.source, strict=True)
  source = together([open_source(path, name, revision) for (path, revision), name in named])
  found, plan = import_source(source, Path(args.to), given(args.config, path))
  for sentence in found.layout.get("assumed", ()):
    print(f"assumed: {sentence}")
  size = total(plan.arrays.values()) / 1e9
  print(f"{args.to}: {found.kind}, {len(source.tensors)} tensors, {size:.3f} GB, from {path}")


def export(args: argparse.Namespace) -> None:
  """A run directory -> the files that the original code loads."""
  from tarjax.convert.exporting import export_run, open_run
  from tarjax.convert.sana import export_pipeline, export_trained, is_imported, is_trained

  if is_imported(Path(args.run_dir)):
    said = export_pipeline(Path(args.run_dir), Path(args.to), args.format)
  elif is_trained(run := open_run(args.run_dir)):
    said = export_trained(run, args.run_dir, Path(args.to), args.format)
  else:
    said = export_run(args.run_dir, Path(args.to), args.format, extra=args.extra)
  for sentence in said:
    print(sentence)
  print(f"{args.to}: exported from {args.run_dir}")


def inspect(args: argparse.Namespace) -> None:
  """What a run, a bundle or importable files hold; no weight is read."""
  from tarjax.convert.inspecting import inspect as lines

  print("\n".join(lines(args.path, given(args.config, Path(args.path)))))


def init_tar(args: argparse.Namespace) -> None:
  """A text Qwen2.5 and a TA-Tok -> the run that MLLM training starts from."""
  from tarjax.convert.widening import Options
  from tarjax.convert.widening import init_tar as make

  options = Options(**{name: getattr(args, name) for name in Options._fields})
  print(make(args.llm, args.ta_tok, Path(args.to), options))


def select_codebook(args: argparse.Namespace) -> None:
  """The k most representative rows of a language model's word table."""
  from tarjax.convert.selection import select

  print(select(args.llm, args.k, Path(args.to), args.metric, args.direction, args.candidates))


def recover_selection(args: argparse.Namespace) -> None:
  """Which word of a language model each row of a TA-Tok's codebook is."""
  from tarjax.convert.selection import recover, save_ids

  ids, sentence = recover(args.ta_tok, args.llm)
  if args.to:
    save_ids(Path(args.to), ids)
  print(sentence)


def given(config: str | None, source: Path) -> dict[str, Any]:
  """What --config says, or a manifest NAME.json or NAME_pth.json beside a file."""
  from tarjax.convert.tensors import read_json

  beside = [source.with_name(source.stem + end) for end in (".json", "_pth.json")]
  paths = [Path(config)] if config else [p for p in beside if source.is_file() and p.is_file()]
  if not paths:
    return {}
  if not paths[0].is_file():
    raise UserError(f"{paths[0]} does not exist")
  values = read_json(paths[0].parent, paths[0].name)
  return values.get("config", values)


def parse(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="tarjax.convert", description=(__doc__ or "").splitlines()[0]
  )
  verbs = parser.add_subparsers(dest="verb", required=True)

  verb = verbs.add_parser("import", help=import_.__doc__)
  what = "file, folder, owner/repository or owner/repository/file; or files that belong together"
  verb.add_argument("source", nargs="+", help=what)
  verb.add_argument("--to", required=True, metavar="DIR", help="the run directory to make")
  verb.add_argument("--revision", help="of a hub repository")
  verb.add_argument("--config", metavar="FILE", help="JSON with what the files do not say")
  verb.set_defaults(run=import_)

  verb = verbs.add_parser("export", help=export.__doc__)
  verb.add_argument("run_dir", metavar="DIR[@STEP]", help="a run that was imported or trained")
  verb.add_argument("--to", required=True, metavar="OUT", help="folder, or a .pth or .pt file")
  verb.add_argument("--format", choices=("hf", "torch", "diffusers"), help="default: the kind's")
  verb.add_argument(
    "--extra",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="keep tensors that are no part of the network",
  )
  verb.set_defaults(run=export)
  verb = verbs.add_parser("inspect", help=inspect.__doc__)
  verb.add_argument("path", help="DIR[@STEP] of a run, a bundle, or files that can be imported")
  verb.add_argument("--config", metavar="FILE", help="JSON with what the files do not say")
  verb.set_defaults(run=inspect)
  add_words_verbs(verbs)
  return parser.parse_args(argv)


def add_words_verbs(verbs) -> None:
  """The verbs about words, which read runs and make runs or lists of ids."""
  verb = verbs.add_parser("init-tar", help=init_tar.__doc__)
  verb.add_argument("--llm", required=True, metavar="DIR", help="run of a text Qwen2.5")
  verb.add_argument("--ta-tok", metavar="DIR", help="run of a TA-Tok")
  verb.add_argument("--codes", type=int, help="or the number of another tokenizer's visual words")
  verb.add_argument("--to", required=True, metavar="OUT", help="the run directory to make")
  verb.add_argument(
    "--embed-init",
    help="codebook, selected_rows, mean or random; default: codebook, and selected_rows where the "
    "widths differ and the ids are known",
  )
  verb.add_argument(
    "--lm-head-init", help="mean (default), codebook_tokens or random; of untied models"
  )
  verb.add_argument("--multiple", type=int, default=256, help="of rows, so that shards are equal")
  verb.add_argument("--scale", type=float, default=1.0, help="the codebook is divided by it")
  verb.add_argument("--selected", metavar="FILE", help="token ids of the codes, .npy")
  verb.add_argument("--text-rows", type=int, help="words of text; default: ask the tokenizer")
  verb.add_argument("--seed", type=int, default=0, help="of random rows")
  verb.set_defaults(run=init_tar)

  verb = verbs.add_parser("select-codebook", help=select_codebook.__doc__)
  verb.add_argument("--llm", required=True, metavar="DIR", help="run of a Qwen2.5")
  verb.add_argument("--k", type=int, required=True, help="how many")
  verb.add_argument("--to", required=True, metavar="OUT", help="folder for the token ids")
  verb.add_argument("--metric", default="l2", help="l2, sqeuclidean or cosine")
  verb.add_argument("--direction", default="largest", help="largest or smallest mean distance")
  verb.add_argument("--candidates", type=int, help="first rows; default: the ordinary words")
  verb.set_defaults(run=select_codebook)

  verb = verbs.add_parser("recover-selection", help=recover_selection.__doc__)
  verb.add_argument("--ta-tok", required=True, metavar="DIR", help="run of a TA-Tok")
  verb.add_argument("--llm", required=True, metavar="DIR", help="run of a Qwen2.5")
  verb.add_argument("--to", metavar="FILE", help="save the ids here, -1 for rows of no word")
  verb.set_defaults(run=recover_selection)


def main(argv: list[str]) -> int:
  args = parse(argv)
  return exit_code(lambda: args.run(args))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
