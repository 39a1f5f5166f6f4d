"""Where should the rows of visual words start: at random, pre-aligned, or at TA-Tok's codebook?

  bash launch/ablation.sh configs/ablations/embedding_init.py --base runs/tar --data DATA
  bash launch/ablation.sh configs/ablations/embedding_init.py --mini

Table 3, Und and DPG after 25M samples: random 91.1, 69.6; TA-Tok 92.9, 70.6; pre-aligned with 50M
samples before 89.8, 70.3, with 100M 91.5, 72.5. Pre-alignment trains nothing but the new rows of
the table, which start at random (`pre_align`); the paper does not say what else, so it has the same
mixture and learning rate. In the twin it takes half as many steps as what comes after it, and as
many. Third metric: the loss of visual words at a third of the steps, the same step in all rows.
Hardware, chip-hours, metrics: configs/ablations/base.py; 250M samples.
"""

import functools

import configs.base
from configs.ablations import base
from tarjax.ablations import Effect, Folder, Metric, Row, Table, same, train
from tarjax.evals.table_scores import DPG, GENERATION, UND, UNDERSTANDING, logged

FILE = "configs/ablations/embedding_init.py"
VARIANTS = {
  "random": {"widen.embed_init": "random"},
  "ta_tok": {},
  "align_50m": {"widen.embed_init": "random", "pre_align": True},
  "align_100m": {"widen.embed_init": "random", "pre_align": True},
  "after_align": {},  # the 25M samples after either
}
MINI_STEPS = 1500
ALIGN = {
  "align_50m": {False: 48_828, True: MINI_STEPS // 2},
  "align_100m": {False: 97_656, True: MINI_STEPS},
}
EARLY = {False: base.STEPS // 3, True: MINI_STEPS // 3}


def get_config(variant="ta_tok"):
  row, mini = base.split(variant, VARIANTS)
  config = base.mllm(mini, mini_steps=MINI_STEPS)
  with config.unlocked():
    config.pre_align = False
    if not mini:
      config.init = {}
      config.ta_tok = dict(configs.base.TA_TOK)
      config.widen = dict(llm="../qwen_1p5b", ta_tok="../ta_tok", embed_init="codebook", scale=1.0)
    if row == "after_align":
      del config.widen, config.ta_tok
      config.init = {"": "../align"}
  config.optim.weight_decay = 0.0  # or pre-alignment would shrink what it must not touch
  config.update_from_flattened_dict(VARIANTS[row])
  if row in ALIGN:
    config.steps = ALIGN[row][mini]
    config.optim.warmup = MINI_STEPS // 25 if mini else base.WARMUP
  return config


def get_table(mini):
  seeds, prefix = base.SEEDS[mini], f"{FILE}:{'mini_' if mini else ''}"
  start = base.reads(mini) if mini else (*base.reads(mini), "qwen_1p5b")

  def folder(row, seed):
    if row in ("random", "ta_tok"):
      runs = {"mllm": train(prefix + row, reads=start, seed=seed)}
    else:
      runs = {
        "align": train(prefix + row, reads=start, seed=seed),
        "mllm": train(prefix + "after_align", reads=(*start, "align"), seed=seed),
      }
    return Folder(runs | {"score": base.scored(mini)})

  folders = {f"{row}-{seed}": folder(row, seed) for row in PAPER for seed in seeds}
  rows = {
    row: Row(
      title,
      same([f"{row}-{seed}/score" for seed in seeds], "und", "gen", "loss"),
      {"und": und, "gen": dpg},
    )
    for row, (title, und, dpg) in PAPER.items()
  }
  early = functools.partial(logged, "mllm", "loss_image", EARLY[mini])
  metrics = {"und": UNDERSTANDING, "gen": GENERATION} if mini else {"und": UND, "gen": DPG}
  metrics |= {"loss": Metric(f"loss of visual words at step {EARLY[mini]}", early)}
  effects = (
    Effect("TA-Tok's codebook learns faster than random rows", "loss", "ta_tok", "random", "lower"),
    Effect("TA-Tok's codebook reads better than random rows", "und", "ta_tok", "random"),
    Effect("TA-Tok's codebook draws better than random rows", "gen", "ta_tok", "random"),
    Effect("and better than 50M samples of pre-alignment", "gen", "ta_tok", "align_50m"),
    Effect("100M samples of pre-alignment draw better still", "gen", "align_100m", "ta_tok"),
  )
  return Table(
    "Table 3: initial embeddings",
    metrics,
    rows,
    folders,
    effects,
    base.BUNDLE[mini],
    curve=("mllm", "loss_image"),
  )


# fmt: off
PAPER = {
  "random":     ("random",              91.1, 69.6),
  "align_50m":  ("pre-aligned, short",  89.8, 70.3),
  "ta_tok":     ("TA-Tok",              92.9, 70.6),
  "align_100m": ("pre-aligned, long",   91.5, 72.5),
}
# fmt: on
