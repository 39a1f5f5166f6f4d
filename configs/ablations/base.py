"""What the tables of the paper share: the training of their rows, how rows are scored, bundles.

A table is made by `bash launch/ablation.sh configs/ablations/TABLE.py`. Its rows are training runs
named FILE:ROW, and FILE:mini_ROW in the twin on digits, so each can also be started by a pod's
launcher; `launch/ablation.sh FILE --dry-run` prints the commands, and the table goes on from what
is there.

The paper's size (Sec. 4.3): Qwen2.5-1.5B on 10M T2I, 10M I2T and 5M text samples, once, with the
values of Table 8. BASE is runs/tar with what configs/mllm.py and configs/ar_dtok.py start from and
make: start_1p5b, ta_tok, vqvae, ar_dtok_256_xl, i2t, t2i, ... and data. DATA holds the data sets
of the benchmarks as `tarjax.evaluate` reads them. "Und" is the harmonic mean over POPE (F1), MME-P,
SEED (image) and GQA, each relative to the best unified model of Table 1: the paper's divisors are
not known, so differences are to be compared. The pictures of DPG-Bench are in RUN/scores.dpg, for
ELLA's program; after it

  python -m tarjax.evals.dpg dpg-bench_results.txt --questions dpg_bench.csv --out RUN/dpg.json

and the report again. GenEval's are judged by a run of the table (requirements-judges.txt), which
finds mask2former-swin-small-coco-instance and clip-vit-large-patch14 in DATA.

The twins train on what a quickstart left in BASE (runs/digits), at scale 2, with three seeds for
each row; understanding is the mean of the six scores of answers, generation that of pictures.
Hardware: two CPU cores, below an hour each. Of the paper's size: 64 TPU chips; the chip-hours of a
row by the commands of `launch/ablation.sh FILE --plan v5p:4x4x4` (docs/plan.md: 1,614 of the whole
pretraining, of which 25M samples are a quarter).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import configs.mllm
from configs import base
from configs.digits import mllm as digits_mllm
from tarjax.ablations import Run, score

SEEDS = {True: (0, 1, 2), False: (0,)}  # by mini
STEPS, WARMUP = 24_414, 732  # 25M samples in batches of 1,024
MINI_STEPS = 1800  # of a twin with twelve runs; pages with fewer give more
MIXTURE = {"i2t": 2.0, "t2i": 2.0, "text": 1.0}
COUNT = 240  # prompts, and questions, of digits

BUNDLE = {
  False: {
    "components": {
      "tokenizer": "start_1p5b/tokenizer",
      "mllm": "mllm",
      "ta_tok": "ta_tok",
      "ar_dtok": "ar_dtok_256_xl",
      "vqvae": "vqvae",
    },
    "preprocessing": {"resize": "squash", "drawn": 256, "canvas": 256},
    "sampling": {
      "scale": 1,
      "text": {"temperature": 0.0},
      "image": {"temperature": 1.0, "top_k": 1200, "top_p": 0.95},
      "pixels": {"guidance_scale": 4.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
    },
  },
  True: {
    "components": {
      "tokenizer": "tokenizer_tar",
      "mllm": "mllm",
      "ta_tok": "ta_tok",
      "ar_dtok": "ar_dtok",
      "vqvae": "vqvae",
    },
    "preprocessing": {"resize": "squash", "drawn": 24, "canvas": 48},
    "sampling": {
      "scale": 2,
      "text": {"temperature": 0.0},
      "image": {"temperature": 0.9, "top_k": 0, "top_p": 1.0},
      "pixels": {"guidance_scale": 1.0, "temperature": 0.3, "top_k": 0, "top_p": 1.0},
    },
  },
}
READS = {  # of a bundle besides its MLLM
  False: ("start_1p5b", "ta_tok", "ar_dtok_256_xl", "vqvae"),
  True: ("tokenizer_tar", "ta_tok", "ar_dtok", "vqvae"),
}


def split(variant: str, rows: Iterable[str]) -> tuple[str, bool]:
  """ "mini_ROW" or "ROW" -> (ROW, whether it is the twin's); a ValueError lists the rows."""
  row = variant.removeprefix("mini_")
  base.choose(row, {name: None for name in rows})
  return row, row != variant


def mllm(mini: bool, mixture: Mapping[str, float] = MIXTURE, mini_steps: int = MINI_STEPS) -> Any:
  """The training of a row's MLLM, locked: a change of a key that is not there is an error."""
  if mini:
    config = digits_mllm.get_config()
    config.update(steps=mini_steps)
  else:
    config = configs.mllm.get_config("1p5b_pretrain")
    config.update(steps=STEPS)
    config.optim.warmup = WARMUP
  config.data.sources = [source(mini, name, weight) for name, weight in mixture.items() if weight]
  return config.lock()


def source(mini: bool, name: str, weight: float) -> dict[str, Any]:
  """A part of the mixture."""
  base.choose(name, dict.fromkeys(("i2t", "t2i", "i2i", "ti2i", "text")))
  if name == "text":
    where = {"name": "digits", "task": "text"}
    where = where if mini else {"name": "parquet", "path": "../data/text"}
  else:
    path = f"../encoded/{name}" if mini else f"../{name}/data"
    where = {"name": "records", "path": path}
  return where | {"weight": weight}


def reads(mini: bool, mixture: Mapping[str, float] = MIXTURE) -> tuple[str, ...]:
  """The stages that `mllm` starts from and learns from."""
  if mini:
    return ("llm", "ta_tok", "tokenizer_tar", "encoded")
  sets = [name for name, weight in mixture.items() if weight and name != "text"]
  return ("start_1p5b", "ta_tok", "data", *sets)


def scored(mini: bool, *words: str, mllm: str = "mllm", more: Sequence[str] = ()) -> Run:
  """The run that scores a row: digits, or the benchmarks with DPG-Bench's pictures."""
  tasks = ("digits", "--count", str(COUNT)) if mini else ("pope,mme,seed,gqa,dpg", *DATA)
  return score("--tasks", *tasks, *words, reads=(*READS[mini], mllm, *more))


DATA = ("--data", "{data}", "--resume")


def judge(stage: str) -> Run:
  """GenEval's verdicts on the pictures that `stage` drew."""
  words = (f"{{folder}}/{stage}/scores.geneval", "--resume", "--out", "{run}/geneval.json")
  words += ("--detector", "{data}/mask2former-swin-small-coco-instance")
  words += ("--clip", "{data}/clip-vit-large-patch14")
  return Run("tarjax.evals.geneval", words, (stage,), "geneval.json")
