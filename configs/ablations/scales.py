"""How many visual words does a picture need, to be understood and to be drawn?

  bash launch/ablation.sh configs/ablations/scales.py --base runs/tar --data DATA
  bash launch/ablation.sh configs/ablations/scales.py --mini

Table 5, one model that reads and draws at three scales: Und 92.9, 89.1, 86.6 with 729, 169 and 81
words a picture; DPG 70.6, 72.7, 73.0 after 10M T2I samples, 73.8, 74.0, 73.5 after 20M, 82.3, 82.2,
80.1 after 40M and finetuning. Understanding is asked of the 10M model. The samples of understanding
and text are taken to grow as T2I's do, which the paper does not say. The twin trains all scales
alike, one model for each seed; pictures are painted by the quickstart's AR-DTok, which has seen
scale 2 in 14 of 16 steps.
Hardware, chip-hours, metrics: configs/ablations/base.py; 7 times the 25M samples and one SFT.
"""

from configs.ablations import base
from tarjax.ablations import Effect, Folder, Metric, Row, Table, same, train
from tarjax.evals.table_scores import DPG, GENERATION, UND, UNDERSTANDING

FILE = "configs/ablations/scales.py"
VARIANTS = {
  "10m": {},
  "20m": {"steps": 2 * base.STEPS, "optim.warmup": 2 * base.WARMUP},
  "40m": {"steps": 4 * base.STEPS, "optim.warmup": 4 * base.WARMUP},
}
MINI_STEPS = 3000
MINI_SCALES = {"data.scales.1": 1.0, "data.scales.2": 1.0, "data.scales.3": 1.0}
# fmt: off
PAPER = {
  "1": ("729 words", {"und": 92.9, "10m": 70.6, "20m": 73.8, "40m": 82.3}),
  "2": ("169 words", {"und": 89.1, "10m": 72.7, "20m": 74.0, "40m": 82.2}),
  "3": ("81 words",  {"und": 86.6, "10m": 73.0, "20m": 73.5, "40m": 80.1}),
}
# fmt: on


def get_config(variant="10m"):
  row, mini = base.split(variant, VARIANTS)
  config = base.mllm(mini, mini_steps=MINI_STEPS)
  config.update_from_flattened_dict(MINI_SCALES if mini else VARIANTS[row])
  return config


def get_table(mini):
  return mini_table() if mini else full_table()


def mini_table():
  folders = {
    f"seed{seed}": Folder(
      {"mllm": train(f"{FILE}:mini_10m", reads=base.reads(True), seed=seed)}
      | {f"scale{s}": base.scored(True, "--scale", s) for s in PAPER}
    )
    for seed in base.SEEDS[True]
  }
  rows = {
    f"scale{s}": Row(
      title.replace("729", "144").replace("169", "36").replace("81", "16"),
      same([f"{folder}/scale{s}" for folder in folders], "und", "10m"),
      {k: paper[k] for k in ("und", "10m")},
    )
    for s, (title, paper) in PAPER.items()
  }
  return Table(
    "Table 5: scale",
    {"und": UNDERSTANDING, "10m": GENERATION},
    rows,
    folders,
    EFFECTS,
    base.BUNDLE[True],
  )


def full_table():
  mixture = base.reads(False)
  runs = {
    "10m": {"mllm": train(f"{FILE}:10m", reads=mixture)},
    "20m": {"mllm": train(f"{FILE}:20m", reads=mixture)},
    "40m": {
      "mllm_1p5b_pretrain": train(f"{FILE}:40m", reads=mixture),
      "mllm": train("configs/mllm.py:1p5b_sft", reads=("mllm_1p5b_pretrain", *SFT)),
    },
  }
  scores = {f"scale{s}": base.scored(False, "--scale", s) for s in PAPER}
  rows = {
    f"scale{s}": Row(
      title,
      {"und": (f"10m/scale{s}",)} | {size: (f"{size}/scale{s}",) for size in VARIANTS},
      paper,
    )
    for s, (title, paper) in PAPER.items()
  }
  metrics = {size: Metric(f"DPG, {size.upper()}", DPG.read) for size in VARIANTS}
  return Table(
    "Table 5: scale",
    {"und": UND} | metrics,
    rows,
    {size: Folder(made | scores) for size, made in runs.items()},
    EFFECTS,
    base.BUNDLE[False],
  )


SFT = ("start_1p5b", "ta_tok", "data", "sft_i2t", "sft_t2i", "sft_i2i", "sft_ti2i")
EFFECTS = (
  Effect("a third of the side less costs understanding", "und", "scale2", "scale1", "lower"),
  Effect("and two thirds cost more", "und", "scale3", "scale1", "lower"),
  Effect("generation needs fewer words", "10m", "scale3", "scale1", "higher"),
)
