"""Does learning to read hurt learning to draw, or the other way round, with one representation?

  bash launch/ablation.sh configs/ablations/joint.py --base runs/tar --data DATA
  bash launch/ablation.sh configs/ablations/joint.py --mini

Table 6, separate to joint: Und 92.8 to 92.9 and DPG 65.3 to 70.6. Of the other representations:
Janus 95.0 to 94.4 and 33.5 to 33.4, VQVAE 73.9 to 74.2 and 40.1 to 48.2. Alone, each task keeps the
text (which the paper does not say) and sees as many of its samples as in the joint run, so it takes
three fifths of the steps. Hardware, chip-hours, metrics: configs/ablations/base.py; 55M samples.
"""

from configs.ablations import base
from tarjax.ablations import Effect, Folder, Row, Table, train
from tarjax.evals.table_scores import DPG, GENERATION, UND, UNDERSTANDING

FILE = "configs/ablations/joint.py"
MIXTURES = {
  "und": {"i2t": 2.0, "text": 1.0},
  "gen": {"t2i": 2.0, "text": 1.0},
  "both": base.MIXTURE,
}
MINI_STEPS = 3600
SHARE = 3 / 5  # of the joint run's samples that one task and the text are


def get_config(variant="both"):
  row, mini = base.split(variant, MIXTURES)
  config = base.mllm(mini, MIXTURES[row], MINI_STEPS)
  if row != "both":
    config.steps = int(SHARE * config.steps)
    config.optim.warmup = int(SHARE * config.optim.warmup)
  return config


def get_table(mini):
  seeds, prefix = base.SEEDS[mini], "mini_" if mini else ""
  folders = {
    f"{row}-{seed}": Folder(
      {
        "mllm": train(f"{FILE}:{prefix}{row}", reads=base.reads(mini, mixture), seed=seed),
        "score": base.scored(mini),
      }
    )
    for row, mixture in MIXTURES.items()
    for seed in seeds
  }

  def keys(row):
    return tuple(f"{row}-{seed}/score" for seed in seeds)

  rows = {
    "separate": Row("ours, separate", {"und": keys("und"), "gen": keys("gen")}, SEPARATE),
    "joint": Row("ours, joint", {"und": keys("both"), "gen": keys("both")}, JOINT),
  }
  if not mini:
    rows |= {title: Row(title, {}, paper) for title, paper in OTHERS.items()}
  metrics = {"und": UNDERSTANDING, "gen": GENERATION} if mini else {"und": UND, "gen": DPG}
  margin = 0.03 if mini else 0.5
  effects = (
    Effect("joint training does not hurt reading", "und", "joint", "separate", "not lower", margin),
    Effect("joint training helps drawing", "gen", "joint", "separate", "higher"),
  )
  title = "Table 6: separate and joint training"
  bundle = base.BUNDLE[mini]
  return Table(title, metrics, rows, folders, effects, bundle)


SEPARATE, JOINT = {"und": 92.8, "gen": 65.3}, {"und": 92.9, "gen": 70.6}
OTHERS = {
  "Janus, separate": {"und": 95.0, "gen": 33.5},
  "Janus, joint": {"und": 94.4, "gen": 33.4},
  "VQVAE, separate": {"und": 73.9, "gen": 40.1},
  "VQVAE, joint": {"und": 74.2, "gen": 48.2},
}  # the paper's alone
