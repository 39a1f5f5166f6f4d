"""Pictures for Table 11, as tarjax.evals.fid reads them: of ImageNet's classes, or redrawn.

  python -m tarjax.evals.imagenet runs/llamagen --cfg 1.75 --out xl.npz
  python -m tarjax.evals.imagenet runs/tar --pictures /data/imagenet_val --cfg 10 --out redrawn.npz

The first has an AR-DTok that draws from classes (LlamaGen), and picture i is of class i modulo
their number; its pictures are resized to the bundle's canvas as LlamaGen's sampler does it. The
second cuts pictures, a folder or NAME:PATH, to ADM's square of the canvas, reads them with TA-Tok
at scale 1 and draws them again. A picture's seed comes from what it shows and its number, so that
it is the same in any batch. What is drawn lies in OUT.drawing, where --resume goes on.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tarjax.config import UserError, exit_code, write_json

RAW = "pictures.raw"  # uint8, one after the other
PART = 512  # pictures held at a time while the .npz is written
CUBIC = -0.75  # PyTorch's bicubic

Draw = Callable[[range], np.ndarray]  # numbers of pictures -> uint8[n y x 3]


def of_classes(pipe, settings: dict[str, Any]) -> Draw:
  """Draws pictures of classes in turn."""
  from tarjax import sampling
  from tarjax.evals.asking import seed_of
  from tarjax.models.vqvae import to_uint8

  classes, side = pipe.ar_dtok.config.cond_vocab, pipe.bundle["preprocessing"]["canvas"]

  def pixels_of(params, ids):
    drawn = pipe.vqvae.apply({"params": params}, ids, method="decode_indices")
    return bicubic(drawn, side)

  def draw(numbers: range) -> np.ndarray:
    labels = np.array([i % classes for i in numbers], np.int32)
    seeds = [seed_of(f"class {i % classes}", i // classes) for i in numbers]
    images, seeds = [], np.array(seeds, np.uint32)
    for rows, real in pipe.devices.batches(len(labels), pipe.batch):
      cond, seed = pipe.devices.rows(labels[rows]), pipe.devices.rows(seeds[rows])
      ids = sampling.generate_codes(pipe.ar_dtok, pipe.params["ar_dtok"], cond, seed, **settings)
      drawn = pipe.compiled("resized", pixels_of)(pipe.params["vqvae"], ids)
      images.append(to_uint8(pipe.devices.host(drawn)[:real], "round"))
    return np.concatenate(images)

  return draw


def of_pictures(pipe, source, settings: dict[str, Any]) -> Draw:
  """Draws pictures again."""
  from tarjax.evals.asking import seed_of

  def draw(numbers: range) -> np.ndarray:
    side = pipe.bundle["preprocessing"]["canvas"]
    images = [square(source[i]["images"][0], side) for i in numbers]
    return pipe.draw(pipe.encode(images, 1), [seed_of("picture", i) for i in numbers], **settings)

  return draw


def square(image: np.ndarray, side: int) -> np.ndarray:
  """ADM's crop, uint8[y x 3] -> uint8[side side 3]: halved by averages, then bicubic."""
  picture = Image.fromarray(image)
  while min(picture.size) >= 2 * side:
    picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
  scale = side / min(picture.size)
  size = (round(picture.width * scale), round(picture.height * scale))
  picture = picture.resize(size, Image.Resampling.BICUBIC)
  left, top = (size[0] - side) // 2, (size[1] - side) // 2
  return np.asarray(picture.crop((left, top, left + side, top + side)))


def bicubic(images, side: int):
  """float[b y x c] -> float[b side side c] as PyTorch's interpolate, without antialiasing."""
  import jax.numpy as jnp

  if images.shape[1:3] == (side, side):
    return images
  rows, columns = (jnp.asarray(cubic_weights(n, side)) for n in images.shape[1:3])
  return jnp.einsum("ty,byxc,ux->btuc", rows, images, columns, precision="highest")


def cubic_weights(size: int, to: int) -> np.ndarray:
  """What each of `to` places takes from `size` others: float32[to size]; edges are repeated."""
  at = (np.arange(to) + 0.5) * size / to - 0.5
  first, a = np.floor(at).astype(int), CUBIC
  weights = np.zeros((to, size))
  for k in range(-1, 3):
    x = np.abs(at - first - k)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    np.add.at(
      weights, (np.arange(to), np.clip(first + k, 0, size - 1)), np.where(x <= 1, near, far)
    )
  return weights.astype(np.float32)


def fill(file: Path, draw: Draw, count: int, side: int, batch: int, say=print) -> None:
  """Draws what the file lacks of `count` pictures; a picture that was cut off is drawn again."""
  size = side * side * 3
  with open(file, "ab") as f:
    done = min(f.tell() // size, count)
    f.truncate(done * size)
    for start in range(done, count, batch):
      numbers = range(start, min(start + batch, count))
      f.write(draw(numbers).tobytes())
      f.flush()
      say(f"{numbers.stop} of {count} pictures")


def pack(file: Path, out: Path, count: int, side: int) -> None:
  """The raw pictures -> an .npz in ADM's layout."""
  from tarjax.evals import samples

  shape = (count, side, side, 3)
  whole = np.memmap(file, np.uint8, "r", shape=shape)
  with samples.writing(out, shape) as write:
    for start in range(0, count, PART):
      write(whole[start : start + PART])


def arguments(argv: list[str]) -> argparse.Namespace:
  about = (__doc__ or "").splitlines()[0]
  parser = argparse.ArgumentParser(prog="tarjax.evals.imagenet", description=about)
  parser.add_argument("model", help="folder with bundle.json")
  parser.add_argument("--pictures", help="draw these again: a folder, or NAME:PATH")
  parser.add_argument("--each", type=int, default=50, help="pictures of a class")
  parser.add_argument("--limit", type=int, default=0, help="of --pictures, only the first so many")
  parser.add_argument("--cfg", type=float, default=1.0, help="scale of guidance")
  parser.add_argument("--temperature", type=float, default=1.0)
  parser.add_argument("--top_k", type=int, default=0)
  parser.add_argument("--top_p", type=float, default=1.0)
  parser.add_argument("--batch", type=int, default=64, help="pictures at a time")
  parser.add_argument("--resume", action="store_true", help="keep the pictures that are there")
  parser.add_argument("--out", required=True, help=".npz to write")
  return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
  out = Path(args.out)
  if not out.absolute().parent.is_dir():
    raise UserError(f"cannot write {out}: there is no folder {out.parent}")
  if out.suffix != ".npz":
    raise UserError(f"--out {out} must end in .npz")
  for flag, least in (("batch", 1), ("each", 1), ("limit", 0)):
    if getattr(args, flag) < least:
      raise UserError(f"--{flag} must be at least {least}, not {getattr(args, flag)}")
  from tarjax.devices import Devices
  from tarjax.evals import drawing, provenance, reconstruction
  from tarjax.pipeline import TarPipeline

  source = reconstruction.make_source(args.pictures) if args.pictures else None
  needed = ("ta_tok", "ar_dtok", "vqvae") if args.pictures else ("ar_dtok", "vqvae")
  pipe = TarPipeline.load(args.model, args.batch, Devices.all(), needed)
  kind = pipe.ar_dtok.config.cond
  if (kind == "class") == bool(source):
    does = "takes no pictures" if source else "does not draw from classes: give --pictures"
    raise UserError(f"the AR-DTok of {args.model} draws from {kind!r} and {does}")
  settings = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
  settings |= {"guidance_scale": args.cfg}
  if source:
    count = min(args.limit or len(source), len(source))
    draw = of_pictures(pipe, source, settings)
  else:
    count = args.each * pipe.ar_dtok.config.cond_vocab
    draw = of_classes(pipe, settings)
  side = pipe.bundle["preprocessing"]["canvas"]
  made = provenance.of_model(pipe) | {"sampler": settings, "pictures": args.pictures or "classes"}
  folder = out.with_suffix(".drawing")
  drawing.claim(folder, made, args.resume)
  fill(folder / RAW, draw, count, side, args.batch)
  pack(folder / RAW, out, count, side)
  write_json(out.with_suffix(".json"), made | provenance.of_code() | {"count": count})
  shutil.rmtree(folder)
  print(f"{count} pictures: {out}")


def main(argv: list[str]) -> int:
  return exit_code(lambda: run(arguments(argv)))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
