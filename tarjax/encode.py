"""Pre-tokenises pictures: records with images in, ArrayRecord shards of codes out.

  python -m tarjax.encode --config=configs/digits/encode.py --workdir=runs/digits/encoded

Every image becomes its visual words at scales 1, 2 and 3 from one encoder pass and, if a VQVAE is
named, the codes that AR-DTok predicts; if a DC-AE is, the latents that Dif-DTok draws. One folder
per entry of `config.sets`; a shard appears only when whole, so an interrupted run goes on where it
stopped. Each folder is stamped with the hash of the tokenizers' parameters.
"""

import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarjax import checkpoint
from tarjax.config import UserError, finished, parse, write_json
from tarjax.convert.rules import flatten
from tarjax.data import sources, transforms
from tarjax.metrics import Clock
from tarjax.models.dc_ae import DcAe, DcAeConfig
from tarjax.models.ta_tok import TaTok, TaTokConfig
from tarjax.models.vqvae import VqVae, VqVaeConfig
from tarjax.tasks import ta_tok
from tarjax.tasks.inputs import SCALES, pixels

KEYS = {"ta_tok", "vqvae", "vqvae_size", "seed", "batch", "shard", "sets"}
OPTIONAL = {"dc_ae", "dc_ae_size"}


class Encoder:
  """Images -> codes with the networks of two finished runs.

  Args:
    ta_tok_run: the TA-Tok run's directory.
    vqvae_run: the VQVAE run's directory, or None.
    vqvae_size: the VQVAE's pictures in pixels a side, the resolution that AR-DTok draws at.
    batch: images per call of the compiled program.
    dc_ae_run, dc_ae_size: the same of the DC-AE under Dif-DTok.
  """

  def __init__(
    self,
    ta_tok_run: Path,
    vqvae_run: Path | None,
    vqvae_size: int,
    batch: int,
    dc_ae_run: Path | None = None,
    dc_ae_size: int = 0,
  ):
    config = checkpoint.read_config(ta_tok_run)
    params = ta_tok.merge(
      checkpoint.load(str(ta_tok_run)), checkpoint.load(str(ta_tok_run), frozen=True)
    )
    self.net: Any = TaTok(TaTokConfig(**config.model))
    book = jax.jit(lambda p: self.net.apply({"params": p}, method="codebook"))(params)
    trees: dict[str, Any] = {"ta_tok": params, "book": book}
    vq: Any = None
    dc_ae: Any = None
    if vqvae_run is not None:
      vq = VqVae(VqVaeConfig(**checkpoint.read_config(vqvae_run).model))
      trees["vqvae"] = checkpoint.load(str(vqvae_run))
    if dc_ae_run is not None:
      dc_ae = DcAe(DcAeConfig(**checkpoint.read_config(dc_ae_run).model))
      trees["dc_ae"] = checkpoint.load(str(dc_ae_run))
    self.batch, self.trees = batch, jax.device_put(trees)
    self.sizes = (self.net.cfg.encoder.image, vqvae_size if vq else 0, dc_ae_size if dc_ae else 0)
    self.hash = {k: tree_hash(trees[k]) for k in trees if k != "book"}

    def encode(trees, images, small, view):
      out = self.net.apply(
        {"params": trees["ta_tok"]}, pixels(images), trees["book"], method="encode_all"
      )
      codes = {f"codes{s}": out[s] for s in SCALES}
      if vq is not None:
        z = vq.apply({"params": trees["vqvae"]}, pixels(small), method="encode")
        found = vq.apply({"params": trees["vqvae"]}, z, method="quantize")
        codes["vq"] = found["indices"]
      if dc_ae is not None:
        z = dc_ae.apply({"params": trees["dc_ae"]}, pixels(view), method="encode")
        codes["latent"] = z * dc_ae.config.scaling
      return codes

    self._encode = jax.jit(encode)

  def __call__(self, images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Pictures uint8[y x 3] -> {"codes1".."codes3", "vq", "latent"}: int32 or float32[n ...]."""
    parts = []
    for start in range(0, len(images), self.batch):
      chunk = images[start : start + self.batch]
      views = [self._view(chunk, size) for size in self.sizes]
      out = self._encode(self.trees, *views)
      parts.append({k: np.asarray(v)[: len(chunk)] for k, v in out.items()})
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

  def _view(self, images: list[np.ndarray], size: int) -> jax.Array:
    """All networks see the same picture, each at its size: uint8[batch size size 3]."""
    view = np.zeros((self.batch, size, size, 3), np.uint8)
    for row, image in enumerate(images if size else []):
      view[row] = image if image.shape[:2] == (size, size) else transforms.squash(image, size)
    return jnp.asarray(view)


def tree_hash(tree) -> str:
  """sha256 over names, shapes, dtypes and bytes of a tree of arrays."""
  digest = hashlib.sha256()
  for name, array in sorted(flatten(tree).items()):
    array = np.asarray(array)
    digest.update(f"{name} {array.shape} {array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def tokenised(encoder: Encoder, source, start: int, stop: int) -> Iterator[dict]:
  """Records start..stop-1 of a source with codes in the place of images."""
  records = [dict(source[i]) for i in range(start, stop)]
  codes = encoder([image for r in records for image in r["images"]])
  at = 0
  for record in records:
    count = len(record.pop("images"))
    rows = range(at, at + count)
    record["codes"] = [{s: codes[f"codes{s}"][i] for s in SCALES} for i in rows]
    record |= {k: [codes[k][i] for i in rows] for k in ("vq", "latent") if k in codes}
    at += count
    yield record


def encode_set(encoder: Encoder, name: str, spec, config, folder: Path, clock: Clock) -> None:
  """Writes one folder of shards, skipping those that are there already."""
  count, per_shard = int(spec["count"]), int(config.shard)
  stamp = {"tokenizers": encoder.hash, "spec": dict(spec), "seed": config.seed}
  if (folder / sources.META).is_file():
    found = sources.read_meta(folder)
    if all(found.get(k) == v for k, v in stamp.items()):
      print(f"{name}: {count} records are there")
      return
    raise UserError(f"{folder} was made by other tokenizers or settings: remove it first")
  arguments = {k: v for k, v in spec.items() if k != "count"}
  source = sources.make_source(
    arguments, workdir=str(folder.parent), split="train", seed=config.seed
  )
  started = time.time()
  for shard, start in enumerate(range(0, count, per_shard)):
    path, stop = folder / sources.SHARD.format(shard), min(start + per_shard, count)
    if not path.is_file():
      sources.write_shard(path, tokenised(encoder, source, start, stop))
      clock.read(stop)
    rate = stop / (time.time() - started)
    print(f"{name}: {stop}/{count} records, {rate:.0f}/s, ETA {(count - stop) / rate:.0f} s")
  sources.finish_records(folder, stamp)


def main(argv: list[str], began: float) -> int:
  try:
    config, workdir = parse(argv, KEYS, OPTIONAL)
    names = {k: config.get(k) for k in ("ta_tok", "vqvae", "dc_ae")}
    run = {k: Path(workdir, name).resolve() if name else None for k, name in names.items()}
    if run["ta_tok"] is None:
      raise UserError("config.ta_tok names no run")
    size = config.get("dc_ae_size", 0)
    encoder = Encoder(
      run["ta_tok"], run["vqvae"], config.vqvae_size, config.batch, run["dc_ae"], size
    )
    workdir.mkdir(parents=True, exist_ok=True)
    clock, done = Clock(workdir, began), finished(workdir)
    for name, spec in config.sets.items():
      encode_set(encoder, name, spec.to_dict(), config, workdir / name, clock)
    if not done:
      records = sum(int(spec["count"]) for spec in config.sets.values())
      write_json(workdir / "done.json", clock.read(records))
  except (UserError, ValueError) as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:], time.time()))
