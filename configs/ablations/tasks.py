"""Do tasks from picture to picture help pictures from text?

  bash launch/ablation.sh configs/ablations/tasks.py --base runs/tar --data DATA
  bash launch/ablation.sh configs/ablations/tasks.py --mini

The paper's table of tasks, T2I:I2I:TI2I within generation: 3:0:0 Und 89.2, DPG 66.4; 2:1:0 89.4,
68.5; 2:0:1 89.8, 70.1; 4:1:1 89.8, 70.7. (Its baseline is not the 25M run of the other tables; how
much it saw is not said.) Hardware, chip-hours, metrics: configs/ablations/base.py; 100M samples.
"""

from configs.ablations import base
from tarjax.ablations import Effect, Folder, Row, Table, same, train
from tarjax.evals.table_scores import DPG, GENERATION, UND, UNDERSTANDING

FILE = "configs/ablations/tasks.py"
# fmt: off
ROWS = {  # T2I, I2I, TI2I; the paper's Und and DPG
  "baseline": ((3, 0, 0), 89.2, 66.4),
  "i2i":      ((2, 1, 0), 89.4, 68.5),
  "ti2i":     ((2, 0, 1), 89.8, 70.1),
  "both":     ((4, 1, 1), 89.8, 70.7),
}
# fmt: on


def mixture(row):
  """Understanding, generation and text 2:2:1."""
  ratio = ROWS[row][0]
  parts = zip(("t2i", "i2i", "ti2i"), ratio, strict=True)
  return {"i2t": 2.0, "text": 1.0} | {task: 2.0 * part / sum(ratio) for task, part in parts}


def get_config(variant="both"):
  row, mini = base.split(variant, ROWS)
  return base.mllm(mini, mixture(row))


def get_table(mini):
  seeds, prefix = base.SEEDS[mini], "mini_" if mini else ""
  folders = {
    f"{row}-{seed}": Folder(
      {
        "mllm": train(f"{FILE}:{prefix}{row}", reads=base.reads(mini, mixture(row)), seed=seed),
        "score": base.scored(mini),
      }
    )
    for row in ROWS
    for seed in seeds
  }
  rows = {
    row: Row(
      f"{row} {':'.join(map(str, ratio))}",
      same([f"{row}-{seed}/score" for seed in seeds], "und", "gen"),
      {"und": und, "gen": dpg},
    )
    for row, (ratio, und, dpg) in ROWS.items()
  }
  metrics = {"und": UNDERSTANDING, "gen": GENERATION} if mini else {"und": UND, "gen": DPG}
  effects = tuple(
    Effect(f"{row} helps text-to-image", "gen", row, "baseline")
    for row in ROWS
    if row != "baseline"
  )
  title = "The table of tasks (T2I:I2I:TI2I)"
  bundle = base.BUNDLE[mini]
  return Table(title, metrics, rows, folders, effects, bundle)
