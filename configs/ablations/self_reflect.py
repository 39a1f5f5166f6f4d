"""Does the model draw better when it judges its own candidates, and must it learn to judge?

  bash launch/ablation.sh configs/ablations/self_reflect.py --base runs/tar --data DATA
  bash launch/ablation.sh configs/ablations/self_reflect.py --mini

Table 10, GenEval after 10K to 60K steps: .717 .747 .753 .757 .759 .764, with Self Reflect .757 .779
.788 .784 .785 .780. Those steps are not of Table 8's SFT (15,625), and which they are is not said,
so ours are beside the last. Rows: finetuned with and without judgements, one picture or the best of
four by the model's own P(Yes). Judgement data: `tarjax.reflect`, in the paper's size encoded to
BASE's sft_reflect before, in the twin drawn by BASE's sft and judged by the scorer's rules; there,
both go on from sft with as many steps.
Hardware, metrics: configs/ablations/base.py; chip-hours: two SFTs.
"""

from configs.ablations import base
from configs.digits import sft_reflect
from tarjax.ablations import Effect, Folder, Row, Run, Table, encode, same, score, train
from tarjax.evals.table_scores import GENERATION, GENEVAL

FILE = "configs/ablations/self_reflect.py"
VARIANTS = ("baseline", "reflect")  # of the twin
N = 4  # candidates
PROMPTS = 800  # of the twin's judgement data


def get_config(variant="reflect"):
  row, _ = base.split(f"mini_{variant.removeprefix('mini_')}", VARIANTS)
  config = sft_reflect.get_config()
  if row == "baseline":
    config.data.sources = config.data.sources[:-1]
  return config.lock()


def get_table(mini):
  return mini_table() if mini else full_table()


def mini_table():
  seeds = base.SEEDS[True]
  bundle = base.BUNDLE[True]
  words = (
    "--model",
    "{folder}",
    "--prompts",
    "digits",
    "--count",
    str(PROMPTS),
    "--judge",
    "rules",
  )
  draws = Run("tarjax.reflect", (*words, "--out", "{run}"), SFT, "summary.json")
  recoded = encode(
    "configs/encode.py:records:{folder}/reflect/data",
    "--config.vqvae=",
    reads=("reflect", "ta_tok"),
  )
  folders = {
    "data": Folder({"reflect": draws, "reflect_words": recoded}, {}, {"mllm": "sft"}),
  }
  for row in VARIANTS:
    more = ("reflect_words",) if row == "reflect" else ()
    for seed in seeds:
      reads = ("sft", "tokenizer_tar", "encoded", *more)
      runs = {
        "mllm": train(f"{FILE}:mini_{row}", reads=reads, seed=seed),
        "one": base.scored(True),
        "best": base.scored(True, "--best_of", str(N)),
      }
      folders[f"{row}-{seed}"] = Folder(runs, {k: f"data/{k}" for k in more})
  return table(GENERATION, folders, bundle, lambda row, how: [f"{row}-{s}/{how}" for s in seeds])


SFT = ("tokenizer_tar", "sft", "ta_tok", "ar_dtok", "vqvae")


def full_table():
  tasks = [f"sft_{name}" for name in ("i2t", "t2i", "i2i", "ti2i")]
  start = ("mllm_1p5b_pretrain", "start_1p5b", "ta_tok", "data", *tasks)
  folders = {}
  for row in VARIANTS:
    config = "configs/mllm.py:1p5b_sft" + ("_reflect" if row == "reflect" else "")
    reads = (*start, "sft_reflect") if row == "reflect" else start
    stages = (*base.READS[False], "mllm")
    words = ("--tasks", "geneval", *base.DATA)
    best = (*words, "--best_of", str(N))
    runs = {
      "mllm": train(config, reads=reads),
      "drawn_one": score(*words, reads=stages),
      "drawn_best": score(*best, reads=stages),
      "one": base.judge("drawn_one"),
      "best": base.judge("drawn_best"),
    }
    folders[row] = Folder(runs)
  return table(GENEVAL, folders, base.BUNDLE[False], lambda row, how: [f"{row}/{how}"])


def table(metric, folders, bundle, keys):
  rows = {
    f"{row}_{how}": Row(title, same(keys(row, how), "geneval"), paper)
    for (row, how), (title, paper) in ROWS.items()
  }
  metrics = {"geneval": metric}
  title = "Table 10: Self Reflect"
  return Table(title, metrics, rows, folders, EFFECTS, bundle)


ROWS = {
  ("baseline", "one"): ("finetuned, one picture", {"geneval": 0.764}),
  ("baseline", "best"): (f"finetuned, best of {N}", {}),
  ("reflect", "one"): ("with judgements, one picture", {}),
  ("reflect", "best"): (f"with judgements, best of {N}", {"geneval": 0.780}),
}
EFFECTS = (
  Effect("Self Reflect draws better", "geneval", "reflect_best", "baseline_one"),
  Effect("the best of several is better than one", "geneval", "reflect_best", "reflect_one"),
  Effect("judging must be learnt", "geneval", "reflect_best", "baseline_best"),
)
