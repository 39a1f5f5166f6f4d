"""A folder of runs and data from which every `tiny` variant of the paper's configs can start.

The runs hold random networks of the tiny sizes. The data are in the formats and places that the
configs name: WebDataset tars, records of codes and latents, parquet of conversations.
"""

import importlib
import io
import tarfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tiny_bundle import random_tree

from configs import base
from tarjax import checkpoint, saving, stamps, tasks
from tarjax import config as configs
from tarjax.data import sources, tokenizer
from tarjax.data.digits import text_documents
from tarjax.models.siglip2 import VisionConfig, VisionTower
from tarjax.state import TrainState

WORDS = {s: (base.TINY_SIGLIP2["image"] // base.TINY_SIGLIP2["patch"] // s) ** 2 for s in (1, 2, 3)}
CODES = base.TINY_TA_TOK["codes"]
TALKS = {
  "i2t": [("human", "<image>\nWhat is it?"), ("gpt", "a red three")],
  "t2i": [("human", "a red three"), ("gpt", "<image>")],
  "i2i": [("human", "Generate an image similar to <image>"), ("gpt", "<image>")],
  "ti2i": [("human", "a dog on <image>"), ("gpt", "<image>")],
}


def parse(name: str, workdir: str | Path, **changes):
  """ "mllm:tiny" -> its config, with {"optim.lr": 1.0} style changes."""
  stage, _, variant = name.partition(":")
  file = importlib.import_module(f"configs.{stage}").__file__
  config = configs.parse([f"--config={file}:{variant}", f"--workdir={workdir}"])[0]
  config.update_from_flattened_dict(changes)
  return config


def make_world(home: Path) -> Path:
  """Writes everything into `home`, beside which the runs' workdirs go."""
  rng = np.random.default_rng(0)
  write_networks(home)
  for name in ("laion_raw", "laion_aesthetic", "imagenet"):
    write_tar(home / "data" / name, rng)
  made = {
    "tokenizers": {
      "ta_tok": stamps.tree_hash(stamps.load_tokenizer("ta_tok", str(home / "ta_tok")))
    }
  }
  coder = {
    "tokenizers": {"vqvae": stamps.tree_hash(stamps.load_tokenizer("vqvae", str(home / "vqvae")))}
  }
  for resolution, length in (("256", 4), ("512", 16), ("1024", 64)):
    records = [picture(i, rng, vq=[rng.integers(0, 64, length)]) for i in range(16)]
    sources.write_records(home / f"encoded_{resolution}" / "data", records, meta=made)
  classes = [picture(i, rng, vq=[rng.integers(0, 64, 16)] * 2, label=i % 7) for i in range(16)]
  sources.write_records(home / "encoded_imagenet" / "data", classes, meta=made)
  latents = [picture(i, rng, latent=[rng.normal(size=(4, 4, 8))]) for i in range(16)]
  sources.write_records(home / "encoded_dif_512" / "data", latents, meta=made)
  for own in ("", "sft_"):
    for task, turns in TALKS.items():
      count = sum(text.count("<image>") for _, text in turns)
      records = [
        dict(picture(i, rng, count), task=task, conversations=talk(turns)) for i in range(16)
      ]
      sources.write_records(home / f"{own}{task}" / "data", records, meta=made)
      records = [coded(i, rng, turns) for i in range(16)]
      sources.write_records(home / f"codes_{own}{task}" / "data", records, meta=coder)
      records = [placed(i, rng, turns) for i in range(16)]
      sources.write_records(home / f"places_{own}{task}" / "data", records, meta={})
    rows = [
      {"conversations": talk([("human", f"{i}?"), ("gpt", "yes " * i)])} for i in range(1, 17)
    ]
    (home / "data" / f"{own}text").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), home / "data" / f"{own}text" / "part.parquet")
  return home


def write_networks(home: Path) -> None:
  """The runs that the stages start from."""
  texts = text_documents(count=3000)[::4]
  text = tokenizer.build_tokenizer(home / "tokenizer", base.TINY_WORDS - 22, texts)
  for start in ("start_tiny", "start_tiny_codes"):
    tokenizer.add_image_tokens(text, home / start / "tokenizer", CODES)
  tokenizer.add_image_tokens(text, home / "start_tiny_places" / "tokenizer", 1)
  tower = VisionTower(VisionConfig(**base.TINY_SIGLIP2))
  image = np.zeros((1, base.TINY_SIGLIP2["image"], base.TINY_SIGLIP2["image"], 3), np.float32)
  vision = random_tree(lambda key: tower.init(key, image), 1)
  write_run(home / "siglip2", {"vision": vision["params"]})
  table = np.random.default_rng(1).normal(0, 0.3, (base.TINY_WORDS, base.TINY_TA_TOK["width"]))
  write_run(home / "qwen_1p5b", {"embed": {"embedding": table.astype(np.float32)}})
  for name, run in (
    ("ta_tok:tiny", "ta_tok"),
    ("ar_dtok:256_tiny", "ar_dtok_256_tiny"),
    ("ar_dtok:512_tiny", "ar_dtok_512_tiny"),
    ("mllm:tiny_pretrain", "start_tiny"),
    ("mllm:tiny_pretrain", "mllm_tiny_pretrain"),
    ("mllm:tiny_pretrain_vqvae", "start_tiny_codes"),
    ("mllm:tiny_pretrain_hybrid", "start_tiny_places"),
    ("vqvae:tiny", "vqvae"),
  ):
    task = tasks.make_task(parse(name, home))
    make = begun if run.startswith(("ta_tok", "ar_dtok")) else random_tree
    write_run(home / run, make(task.init, 2), make(task.init_frozen, 2))
  lpips = tasks.make_task(parse("vqvae:tiny", home))
  write_run(home / "lpips", random_tree(lpips.init_frozen, 4)["lpips"])
  sana: Any = tasks.make_task(parse("dif_dtok:tiny", home))
  write_run(home / "sana", begun(sana._init, 3))


def begun(init, seed: int):
  """What an init makes, for networks whose gradients are compared: noise has worse rounding."""
  return jax.jit(init)(jax.random.key(seed))


def write_run(path: Path, params, frozen=None) -> None:
  """What other stages read of a run."""
  saver = saving.Saver(path, 1)
  saver.save(1, TrainState(1, nn.meta.unbox(params), {"count": np.zeros(())}), {})
  saver.close()
  checkpoint.save_frozen(path, nn.meta.unbox(frozen))


def picture(number: int, rng, images: int = 1, **more) -> dict:
  """A record of so many tokenised pictures."""
  codes = [{s: rng.integers(0, CODES, n) for s, n in WORDS.items()} for _ in range(images)]
  return {"id": str(number), "source": "tiny", "codes": codes, **more}


def coded(number: int, rng, turns) -> dict:
  """A record with the VQVAE's codes of its pictures, and their pixels if the user shows some."""
  record: dict = {"id": str(number), "source": "tiny", "conversations": talk(turns)}
  count, side = sum(text.count("<image>") for _, text in turns), base.TINY_SIGLIP2["image"]
  record["vq"] = [rng.integers(0, CODES, 16) for _ in range(count)]
  if "<image>" in turns[0][1]:
    record["images"] = [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]
  return record


def placed(number: int, rng, turns) -> dict:
  """A record with UniTok's sub-codes of its pictures."""
  count = sum(text.count("<image>") for _, text in turns)
  codes = [rng.integers(0, 8, (16, 4)) for _ in range(count)]
  return {"id": str(number), "source": "tiny", "conversations": talk(turns), "unitok": codes}


def talk(turns) -> list[dict]:
  return [{"from": role, "value": text} for role, text in turns]


def write_tar(folder: Path, rng) -> None:
  """Twelve JPEGs with captions, not all of one size."""
  folder.mkdir(parents=True)
  with tarfile.open(folder / "00000.tar", "w") as tar:
    for i in range(12):
      pixels = rng.integers(0, 255, (40 + i, 64, 3), np.uint8)
      buffer = io.BytesIO()
      Image.fromarray(pixels).save(buffer, "JPEG")
      for extension, data in (("jpg", buffer.getvalue()), ("txt", b"a red three")):
        entry = tarfile.TarInfo(f"{i:05d}.{extension}")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
