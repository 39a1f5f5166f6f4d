"""Pre-tokenises pictures: records with images in, ArrayRecord shards of codes out.

  python -m tarjax.encode --config=configs/digits/encode.py --workdir=runs/digits/encoded

Every image becomes, if a TA-Tok is named, its visual words at scales 1, 2 and 3 from one encoder
pass; if a VQVAE is, its codes, which AR-DTok or the language model predicts; if a UniTok is, its
sub-codes; if a DC-AE is, the latents that Dif-DTok draws. Records in which a user shows images keep
them, at the side `config.shown_size`, for a language model that reads pixels. One folder per entry
of `config.sets`, which is a source as in config.data.sources, with "count" to read only its first
records. A shard appears only when whole, so an interrupted run goes on where it stopped. Each
folder is stamped with the hash of the tokenizers' parameters, which training verifies.

Several processes share the shards of every set: those of jax.distributed, or, started by hand on
any machines that see the workdir, `--config.processes=4 --config.process=0` to 3.
"""

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from tarjax import checkpoint, stamps
from tarjax.config import UserError, finished, parse, write_json
from tarjax.data import sources, transforms
from tarjax.data.damage import FILE, Damaged, Quarantine, listed
from tarjax.data.pipeline import read_ahead
from tarjax.data.tokens import shown_images
from tarjax.metrics import Clock
from tarjax.models.dc_ae import DcAe, DcAeConfig
from tarjax.models.ta_tok import TaTok, TaTokConfig
from tarjax.models.unitok import UniTok, UniTokConfig
from tarjax.models.vqvae import VqVae, VqVaeConfig
from tarjax.tasks.inputs import SCALES, pixels

KEYS = {"ta_tok", "vqvae", "vqvae_size", "seed", "batch", "shard", "sets"}
OPTIONAL = {
  "dc_ae": "",  # the run of a DC-AE, for Dif-DTok
  "dc_ae_size": 0,
  "unitok": "",  # the run of a UniTok, for the Hybrid representation
  "shown_size": 0,  # side of the pictures that records which show some keep; 0 keeps none
  "max_damaged": 0.01,  # share of damaged records above which the run stops
  "workers": 0,  # processes that read and decode; 0 uses a thread
  "process": 0,
  "processes": 0,  # 0: as jax.distributed counts them
}
BEGUN = "begun.json"  # the stamp of a set that is not complete
PATIENCE = 1800  # seconds without a new shard after which the other processes are given up


class Encoder:
  """Images -> codes with the networks of two finished runs.

  Args:
    ta_tok_run: the TA-Tok run's directory, or None.
    vqvae_run: the VQVAE run's directory, or None.
    vqvae_size: the VQVAE's pictures in pixels a side, the resolution that AR-DTok draws at; 0 is
      the one that the VQVAE was trained at.
    batch: images per call of the compiled program.
    dc_ae_run, dc_ae_size: the same of the DC-AE under Dif-DTok.
    unitok_run: the UniTok run's directory, or None.
  """

  def __init__(
    self,
    ta_tok_run: Path | None,
    vqvae_run: Path | None,
    vqvae_size: int,
    batch: int,
    dc_ae_run: Path | None = None,
    dc_ae_size: int = 0,
    unitok_run: Path | None = None,
  ):
    trees: dict[str, Any] = {}
    net: Any = None
    vq: Any = None
    dc_ae: Any = None
    unitok: Any = None
    if ta_tok_run is not None:
      net = TaTok(TaTokConfig(**checkpoint.read_config(ta_tok_run).model))
      params = stamps.load_tokenizer("ta_tok", str(ta_tok_run))
      book = jax.jit(lambda p: net.apply({"params": p}, method="codebook"))(params)
      trees |= {"ta_tok": params, "book": book}
    if vqvae_run is not None:
      its = checkpoint.read_config(vqvae_run)
      vqvae_size = vqvae_size or its.data.size
      vq = VqVae(VqVaeConfig(**its.model))
      trees["vqvae"] = stamps.load_tokenizer("vqvae", str(vqvae_run))
    if dc_ae_run is not None:
      dc_ae = DcAe(DcAeConfig(**checkpoint.read_config(dc_ae_run).model))
      trees["dc_ae"] = stamps.load_tokenizer("dc_ae", str(dc_ae_run))
    if unitok_run is not None:
      unitok = UniTok(UniTokConfig(**checkpoint.read_config(unitok_run).model))
      trees["unitok"] = stamps.load_tokenizer("unitok", str(unitok_run))
    self.batch, self.trees = batch, jax.device_put(trees)
    side = net.cfg.encoder.image if net else 0
    self.sizes = (side, vqvae_size if vq else 0, dc_ae_size if dc_ae else 0)
    self.sizes += (unitok.config.encoder.image if unitok else 0,)
    self.hash = {k: stamps.tree_hash(trees[k]) for k in trees if k != "book"}

    def encode(trees, images, small, view, whole):
      codes = {}
      if net is not None:
        own, book = {"params": trees["ta_tok"]}, trees["book"]
        out = net.apply(own, pixels(images), book, method="encode_all")
        codes = {f"codes{s}": out[s] for s in SCALES}
      if vq is not None:
        z = vq.apply({"params": trees["vqvae"]}, pixels(small), method="encode")
        found = vq.apply({"params": trees["vqvae"]}, z, method="quantize")
        codes["vq"] = found["indices"]
      if dc_ae is not None:
        z = dc_ae.apply({"params": trees["dc_ae"]}, pixels(view), method="encode")
        codes["latent"] = z * dc_ae.config.scaling
      if unitok is not None:
        own = {"params": trees["unitok"]}
        codes["unitok"] = unitok.apply(own, pixels(whole), method="encode")
      return codes

    self._encode = jax.jit(encode)

  def __call__(self, images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Pictures uint8[y x 3] -> {"codes1".."codes3", "vq", "latent"}: [n ...]; {} of none."""
    parts = []
    for start in range(0, len(images), self.batch):
      chunk = images[start : start + self.batch]
      views = [self._view(chunk, size) for size in self.sizes]
      out = self._encode(self.trees, *views)
      parts.append({k: np.asarray(v)[: len(chunk)] for k, v in out.items()})
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]} if parts else {}

  def _view(self, images: list[np.ndarray], size: int) -> jax.Array:
    """All networks see the same picture, each at its size: uint8[batch size size 3]."""
    view = np.zeros((self.batch, size, size, 3), np.uint8)
    for row, image in enumerate(images if size else []):
      view[row] = image if image.shape[:2] == (size, size) else transforms.squash(image, size)
    return jnp.asarray(view)


class Attempts:
  """Random access: i -> record `indices[i]` of a source, or the error that says it is damaged."""

  def __init__(self, source: sources.Source, indices: list[int]):
    self._source, self._indices = source, indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: Any) -> dict | Damaged:
    try:
      return self._source[self._indices[index]]
    except Damaged as e:
      return e


def tokenised(encoder: Encoder, records: Iterable[dict], shown_size: int = 0) -> Iterator[dict]:
  """Records with codes in the place of images, in their order.

  Where a user shows an image, `shown_size` keeps the record's images too, at this side.
  """
  for group in grouped(records, encoder.batch):
    codes = encoder([image for record in group for image in record["images"]])
    at = 0
    for record in group:
      rows = range(at, at + len(record["images"]))
      rest = {k: v for k, v in record.items() if k != "images"}
      if "codes1" in codes or not rows:
        rest["codes"] = [{s: codes[f"codes{s}"][i] for s in SCALES} for i in rows]
      rest |= {k: [codes[k][i] for i in rows] for k in ("vq", "unitok", "latent") if k in codes}
      if shown_size and rows and shown_images(record, len(rows)):
        rest["images"] = [transforms.squash(image, shown_size) for image in record["images"]]
      at = rows.stop
      yield rest


def grouped(records: Iterable[dict], limit: int) -> Iterator[list[dict]]:
  """Records in groups with at most `limit` images, a record with more of them alone."""
  group: list[dict] = []
  images = 0
  for record in records:
    record = dict(record)
    record.setdefault("images", [])
    if group and (images + len(record["images"]) > limit or len(group) >= limit):
      yield group
      group, images = [], 0
    group.append(record)
    images += len(record["images"])
  if group:
    yield group


@dataclasses.dataclass
class Set:
  """One entry of config.sets: where its records come from and where its shards go."""

  name: str
  folder: Path
  stamp: dict
  source: Any
  count: int
  per_shard: int

  def shard(self, number: int) -> Path:
    return self.folder / sources.SHARD.format(number)

  @property
  def shards(self) -> range:
    return range(-(-self.count // self.per_shard))

  def indices(self, number: int) -> range:
    """The records of a shard; those that are damaged are left out of it."""
    return range(number * self.per_shard, min((number + 1) * self.per_shard, self.count))


def open_set(name: str, spec: dict, config, workdir: Path, hashes: dict[str, str]) -> Set | None:
  """A set that is still to be encoded, or None for one that is complete.

  Raises:
    UserError: its folder was made or begun with other tokenizers or settings.
    ValueError: its source cannot be opened or has fewer records than "count".
  """
  folder = workdir / name
  stamp = {"tokenizers": hashes, "spec": spec, "seed": config.seed}
  stamp |= {"shown_size": config.shown_size} if config.shown_size else {}
  begun = folder / BEGUN
  done = (folder / sources.META).is_file()
  if done or begun.is_file():
    wanted = stamp if done else stamp | {"shard": int(config.shard)}
    found = sources.read_json(folder / sources.META if done else begun)
    if other := [k for k, v in wanted.items() if found.get(k) != v]:
      raise UserError(f"{folder} was made with another {' and '.join(other)}: remove it first")
  if done:
    print(f"{name}: {sources.read_meta(folder)['count']} records are there")
    return None
  where = {k: v for k, v in spec.items() if k != "count"}
  source = sources.make_source(where, workdir=str(workdir), split="train", seed=config.seed)
  count = int(spec.get("count", len(source)))
  if not 0 < count <= len(source):
    raise ValueError(f"config.sets.{name}: {len(source)} records there, count={count}")
  folder.mkdir(parents=True, exist_ok=True)
  write_json(begun, stamp | {"shard": int(config.shard)})
  return Set(name, folder, stamp, source, count, int(config.shard))


def write_shards(encoder: Encoder, one: Set, config, quarantine, share, clock: Clock) -> None:
  """Writes the shards of this process, (index, number) of processes, that are not there yet."""
  mine = [k for k in one.shards if k % share[1] == share[0] and not one.shard(k).is_file()]
  indices = [i for k in mine for i in one.indices(k)]
  attempts = grain.MapDataset.source(Attempts(one.source, indices))
  began, done = time.time(), 0
  with contextlib.closing(read_ahead(attempts, 1, 2 * config.batch, config.workers)) as stream:
    for k in mine:
      found = itertools.islice(stream, len(one.indices(k)))
      made = tokenised(encoder, usable(found, quarantine), config.shown_size)
      sources.write_shard(one.shard(k), made)
      done += len(one.indices(k))
      rate = done / (time.time() - began)
      left = (len(indices) - done) / rate
      print(f"{one.name}: {done}/{len(indices)} records, {rate:.0f}/s, ETA {left:.0f} s")
      if not share[0]:
        clock.read(done)


def usable(found: Iterable[dict | Damaged], quarantine: Quarantine) -> Iterator[dict]:
  """What is not damaged; raises TooManyDamaged when that is too little."""
  for record in found:
    if isinstance(record, Damaged):
      quarantine.add(record)
    else:
      quarantine.passed()
      yield record


def wait_for(paths: list[Path]) -> None:
  """Until all of these files are there; other processes write them.

  Raises:
    UserError: no new one appeared for `PATIENCE` seconds.
  """
  before, since = len(paths) + 1, time.time()
  while missing := [path for path in paths if not path.is_file()]:
    if len(missing) < before:
      before, since = len(missing), time.time()
    if time.time() - since > PATIENCE:
      raise UserError(
        f"{missing[0]} and {len(missing) - 1} more files did not appear within {PATIENCE} s: has "
        "a process stopped? Start it again, then this one"
      )
    time.sleep(0.5)


def encode(encoder: Encoder, config, workdir: Path, share: tuple[int, int], clock: Clock) -> int:
  """All sets, as process `share[0]` of `share[1]`; -> the number of records."""
  quarantine = Quarantine(workdir, config.max_damaged)
  hashes = encoder.hash
  opened = [
    open_set(name, spec.to_dict(), config, workdir, hashes) for name, spec in config.sets.items()
  ]
  todo = [one for one in opened if one]
  for one in todo:
    write_shards(encoder, one, config, quarantine, share, clock)
  for one in todo:
    wait_for([one.shard(k) for k in one.shards])
    if share[0]:
      wait_for([one.folder / sources.META])
    else:
      sources.finish_records(one.folder, one.stamp | {"resize": "bicubic, aspect ratio ignored"})
      (one.folder / BEGUN).unlink(missing_ok=True)
  if damaged := len(listed(workdir)):
    print(f"{damaged} damaged records were left out: {workdir / FILE}")
  return sum(sources.read_meta(workdir / name)["count"] for name in config.sets)


def main(argv: list[str], began: float) -> int:
  try:
    config, workdir = parse(argv, KEYS, OPTIONAL)
    run = {
      k: Path(workdir, config[k]).resolve() if config[k] else None
      for k in ("ta_tok", "vqvae", "dc_ae", "unitok")
    }
    if not any(run.values()):
      raise UserError("none of config.ta_tok, vqvae, dc_ae and unitok names a run")
    share = (config.process, config.processes)
    share = share if any(share) else (jax.process_index(), jax.process_count())
    if not 0 <= share[0] < share[1]:
      raise UserError(f"config.process={share[0]} must be below config.processes={share[1]}")
    sizes = (config.vqvae_size, config.batch, run["dc_ae"], config.dc_ae_size, run["unitok"])
    encoder = Encoder(run["ta_tok"], run["vqvae"], *sizes)
    workdir.mkdir(parents=True, exist_ok=True)
    clock, done = Clock(workdir, began), finished(workdir)
    count = encode(encoder, config, workdir, share, clock)
    if not share[0] and not done:
      write_json(workdir / "done.json", clock.read(count))
  except (UserError, ValueError) as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:], time.time()))
