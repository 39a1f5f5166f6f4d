"""Which de-tokenizer paints best for one and the same language model?

  bash launch/ablation.sh configs/ablations/detokenizers.py --base runs/tar --data DATA
  bash launch/ablation.sh configs/ablations/detokenizers.py --mini

Table 4, GenEval and DPG: AR 775M at 256, 512 and 1024 px .76 83.0, .79 82.7, .79 82.6; AR 111M at
256 px .75 82.2; AR 22M .74 81.7; Dif 600M at 512 px .77 82.4. Every row paints the words of BASE's
finetuned MLLM (mllm_1p5b_sft, the twin: sft); the resolutions of one size are trained one after the
other. The twin has AR-DToks of the laptop's size and of a quarter at 24 px, the former also at 48
px, and Dif-DTok, three seeds of each.
Hardware, metrics: configs/ablations/base.py and the stages' own configs; chip-hours: docs/plan.md.
"""

from configs.ablations import base
from configs.digits import ar_dtok as digits_ar_dtok
from tarjax.ablations import Effect, Folder, Metric, Row, Table, encode, same, score, train
from tarjax.evals.table_scores import DPG, GENEVAL, shares

FILE = "configs/ablations/detokenizers.py"
DIF_STEPS = 2400  # of the twin's Dif-DTok; its AR-DToks have the laptop's 5,500 at 24 px
VARIANTS = {  # of the twin
  "24": {},
  "24_small": {"model.width": 64, "model.depth": 2, "model.mlp": 192},
  "48": {"steps": 2400, "model.length": 144, "optim.lr": 1e-3},
}


def get_config(variant="24"):
  config = digits_ar_dtok.get_config()
  row, _ = base.split(f"mini_{variant.removeprefix('mini_')}", VARIANTS)
  if row == "48":
    config.init = {"": "../ar_dtok"}
    config.data.sources = [
      dict(s, path=s["path"].replace("../encoded_vq", "../encoded_48")) for s in config.data.sources
    ]
  config.lock()
  config.update_from_flattened_dict(VARIANTS[row])
  return config


def get_table(mini):
  return mini_table() if mini else full_table()


def drawn(run):
  """Pictures right; those of Dif-DTok in its own runs."""
  return shares("t2i_dif" if run.name == "dif" else "t2i", run)


def mini_table():
  seeds = base.SEEDS[True]
  at_48 = encode("configs/digits/encode_vq.py", "--config.vqvae_size=48", reads=("ta_tok", "vqvae"))
  folders = {"words": Folder({"encoded_48": at_48})}
  for seed in seeds:
    large = train(f"{FILE}:mini_24", reads=("ta_tok", "encoded_vq"), seed=seed)
    folders[f"24-{seed}"] = Folder({"ar_dtok": large, "score": scored()})
    small = train(f"{FILE}:mini_24_small", reads=("ta_tok", "encoded_vq"), seed=seed)
    folders[f"24_small-{seed}"] = Folder({"ar_dtok": small, "score": scored()})
    higher = train(f"{FILE}:mini_48", reads=("ar_dtok", "ta_tok", "encoded_48"), seed=seed)
    folders[f"48-{seed}"] = Folder(
      {"ar_dtok_48": higher, "score": scored("ar_dtok_48")},
      {"ar_dtok": f"24-{seed}/ar_dtok", "encoded_48": "words/encoded_48"},
      {"ar_dtok": "ar_dtok_48"},
      {"drawn": 48},
    )
    longer = f"--config.steps={DIF_STEPS}"
    dif = {
      "dc_ae": train("configs/digits/dc_ae.py", reads=(), seed=seed),
      "dif_dtok": train("configs/digits/dif_dtok.py", longer, reads=("ta_tok", "dc_ae"), seed=seed),
      "dif": scored("dif_dtok", "dc_ae"),
    }
    components = {"dif_dtok": "dif_dtok", "dc_ae": "dc_ae"}
    folders[f"dif-{seed}"] = Folder(dif, {}, components)
  rows = {}
  for row, title in MINI.items():
    stage = "dif" if row == "dif" else "score"
    keys = [f"{row}-{seed}/{stage}" for seed in seeds]
    rows[row] = Row(title, same(keys, "geneval"), {"geneval": PAPER[AS[row]][1]["geneval"]})
  metric = Metric("generation", drawn)
  bundle = base.BUNDLE[True] | {"components": base.BUNDLE[True]["components"] | {"mllm": "sft"}}
  bundle["sampling"] = bundle["sampling"] | {"dif": DIF}
  return Table(TITLE, {"geneval": metric}, rows, folders, MINI_EFFECTS, bundle)


def scored(*more):
  return base.scored(True, mllm="sft", more=more)


def full_table():
  links = {"mllm": "mllm_1p5b_sft"}
  ar = {
    f"ar_dtok_{name}": train(f"configs/ar_dtok.py:{name}", reads=reads)
    for name, reads in TRAINED.items()
  }
  dif = train("configs/dif_dtok.py:512", reads=("sana", "ta_tok", "dc_ae", "encoded_dif_512"))
  folders = {"detokenizers": Folder(ar | {"dif_dtok": dif})}
  rows = {}
  for row, (title, paper) in PAPER.items():
    own = "dif_dtok" if row == "dif" else f"ar_dtok_{row}"
    side = 512 if row == "dif" else int(row.partition("_")[0])
    shown = ("--detokenizer", "dif") if row == "dif" else ()
    painted = {"dif_dtok": "dif_dtok", "dc_ae": "dc_ae"} if shown else {"ar_dtok": own}
    stages = (own, "mllm", "start_1p5b", "ta_tok", "vqvae")
    stages += ("dc_ae", "ar_dtok_256_xl") if shown else ()
    words = ("--tasks", "geneval,dpg", *base.DATA, *shown)
    folders[row] = Folder(
      {"score": score(*words, reads=tuple(dict.fromkeys(stages))), "judged": base.judge("score")},
      links | {k: f"detokenizers/{k}" for k in (own, "ar_dtok_256_xl")},
      painted,
      {"drawn": side, "canvas": side},
    )
    rows[row] = Row(title, {"geneval": (f"{row}/judged",), "dpg": (f"{row}/score",)}, paper)
  metrics = {"geneval": GENEVAL, "dpg": DPG}
  bundle = dict(base.BUNDLE[False])
  bundle["sampling"] = base.BUNDLE[False]["sampling"] | {"dif": DIF}
  return Table(TITLE, metrics, rows, folders, EFFECTS, bundle)


TITLE = "Table 4: de-tokenizers"
DIF = {"sampler": "dpm", "steps": 20, "guidance_scale": 2.0}
# fmt: off
PAPER = {
  "256_xl":  ("AR 775M, 256 px",  {"geneval": .76, "dpg": 83.0}),
  "512_xl":  ("AR 775M, 512 px",  {"geneval": .79, "dpg": 82.7}),
  "1024_xl": ("AR 775M, 1024 px", {"geneval": .79, "dpg": 82.6}),
  "256_b":   ("AR 111M, 256 px",  {"geneval": .75, "dpg": 82.2}),
  "256_s":   ("AR 22M, 256 px",   {"geneval": .74, "dpg": 81.7}),
  "dif":     ("Dif 600M, 512 px", {"geneval": .77, "dpg": 82.4}),
}
MINI = {"24": "AR, 24 px", "48": "AR, 48 px", "24_small": "AR, small, 24 px", "dif": "Dif, 24 px"}
AS = {"24": "256_xl", "48": "512_xl", "24_small": "256_s", "dif": "dif"}  # the paper's rows
TRAINED = {
  "256_xl":  ("ta_tok", "encoded_256"),
  "512_xl":  ("ta_tok", "encoded_512", "ar_dtok_256_xl"),
  "1024_xl": ("ta_tok", "encoded_1024", "ar_dtok_512_xl"),
  "256_b":   ("ta_tok", "encoded_256"),
  "256_s":   ("ta_tok", "encoded_256"),
}
# fmt: on
EFFECTS = (
  Effect("512 px draws more of the prompt than 256", "geneval", "512_xl", "256_xl"),
  Effect("775M draws more of the prompt than 22M", "geneval", "256_xl", "256_s"),
  Effect("Dif does not reach AR at 512 px", "geneval", "dif", "512_xl", "lower"),
)
MINI_EFFECTS = (
  Effect("a higher resolution draws more of the prompt", "geneval", "48", "24"),
  Effect("the larger model draws more of the prompt", "geneval", "24", "24_small"),
  Effect("Dif does not reach AR at the higher resolution", "geneval", "dif", "48", "lower"),
)
