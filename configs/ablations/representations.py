"""Which representation lets one model read and draw, and how do they grow with data?

  bash launch/ablation.sh configs/ablations/representations.py --base runs/tar --data DATA
  bash launch/ablation.sh configs/ablations/representations.py --mini

Figure 5, of which only the ends are in the text: understanding after 10M samples Janus 94, TA-Tok
93, Hybrid about as VQVAE; generation: TA-Tok best throughout, Hybrid begins high and flattens,
Janus is below VQVAE (Table 6: DPG 70.6, 48.2, 33.4; Und 92.9, 74.2, 94.4). `config.representation`
is one of ta_tok, vqvae, janus and hybrid, and everything else is the same: configs/mllm.py says
what each starts from and learns from, and for the twin configs/digits/mllm_{vqvae,janus,hybrid}.py.
Points of the curves, as the text names none: 2.5M, 5M, 7.5M and 10M T2I samples, each a run.
Hardware, chip-hours, metrics: configs/ablations/base.py; 62.5M samples for each.
"""

from typing import Any

import configs.mllm
from configs.ablations import base
from configs.digits import mllm_hybrid, mllm_janus, mllm_vqvae
from tarjax.ablations import Effect, Folder, Metric, Row, Run, Table, encode, train
from tarjax.evals.table_scores import DPG, GENERATION, UND, UNDERSTANDING

FILE = "configs/ablations/representations.py"
VARIANTS = ("ta_tok", "vqvae", "janus", "hybrid")
TWINS = {"vqvae": mllm_vqvae, "janus": mllm_janus, "hybrid": mllm_hybrid}
POINTS = {"2.5m": 0.25, "5m": 0.5, "7.5m": 0.75, "10m": 1.0}  # share of the 25M samples
# fmt: off
PAPER = {
  "ta_tok": ("TA-Tok", {"und-10m": 92.9, "gen-10m": 70.6}),
  "vqvae":  ("VQVAE",  {"und-10m": 74.2, "gen-10m": 48.2}),
  "janus":  ("Janus",  {"und-10m": 94.4, "gen-10m": 33.4}),
  "hybrid": ("Hybrid", {}),
}
# fmt: on


def get_config(variant="ta_tok_10m"):
  """REPRESENTATION_POINT."""
  name, mini = base.split(variant, [f"{row}_{point}" for row in VARIANTS for point in POINTS])
  row, _, point = name.rpartition("_")
  config = base.mllm(mini)
  if mini and row != "ta_tok":
    config = TWINS[row].get_config()
    config.steps = base.MINI_STEPS
  elif row != "ta_tok":
    with config.unlocked():
      configs.mllm.represent(config, row, "1p5b")
  config.steps = int(POINTS[point] * config.steps)
  config.optim.warmup = int(POINTS[point] * config.optim.warmup)
  return config


PLACES = ("tokenizer_places", "encoded_places", "hybrid")


def places():
  """What the twin's Hybrid rows have in common, of which a quickstart makes nothing."""
  words = ("{folder}/tokenizer", "{run}", "1")
  codes = ("--config.ta_tok=", "--config.vqvae=", "--config.unitok=../hybrid")
  return Folder(
    {
      "hybrid": train("configs/digits/hybrid.py", reads=("tokenizer",)),
      "tokenizer_places": Run(
        "tarjax.data.tokenizer", words, ("tokenizer",), "tokenizer_config.json"
      ),
      "encoded_places": encode("configs/digits/encode_vq.py", *codes, reads=("hybrid",)),
    }
  )


def reads(row, mini):
  """What a row's training starts from and learns from."""
  if row == "ta_tok":
    return base.reads(mini)
  if row == "hybrid" and mini:
    return ("llm", *PLACES)
  if row == "hybrid":
    return ("start_1p5b_places", "data", "places_i2t", "places_t2i", "hybrid")
  own = ("vqvae", "siglip2") if row == "janus" else ("vqvae",)
  if mini:
    return ("llm", "tokenizer_tar", "encoded_vq", *own)
  return ("start_1p5b_codes", "data", "codes_i2t", "codes_t2i", *own)


def of_bundle(row, mini):
  """How a row's folder differs from the table's bundle."""
  if row == "ta_tok":
    return {}
  other: dict[str, Any] = {"representation": row}
  if row == "hybrid":
    folder = "tokenizer_places" if mini else "start_1p5b_places/tokenizer"
    other["components"] = {"tokenizer": folder, "unitok": "hybrid"}
  elif not mini:
    other["components"] = {"tokenizer": "start_1p5b_codes/tokenizer"}
    other["preprocessing"] = {"drawn": 384, "canvas": 384}
  return other


def get_table(mini):
  seeds, prefix = base.SEEDS[mini], "mini_" if mini else ""
  points = ["10m"] if mini else list(POINTS)
  folders, rows = {"places": places()} if mini else {}, {}
  shared = {"hybrid": {name: f"places/{name}" for name in PLACES}} if mini else {}
  for row in VARIANTS:
    title, paper = PAPER[row]
    scores = {}
    for point in points:
      made = [f"{row}-{point}-{seed}" for seed in seeds]
      for folder, seed in zip(made, seeds, strict=True):
        config = f"{FILE}:{prefix}{row}_{point}"
        runs = {"mllm": train(config, reads=reads(row, mini), seed=seed)}
        own = of_bundle(row, mini)
        more = [path.partition("/")[0] for path in own.get("components", {}).values()]
        runs["score"] = base.scored(mini, more=more)
        folders[folder] = Folder(runs, shared.get(row, {}), **own)
      keys = tuple(f"{folder}/score" for folder in made)
      scores |= {f"und-{point}": keys, f"gen-{point}": keys}
    rows[row] = Row(title, scores, paper)
  und, gen = (UNDERSTANDING, GENERATION) if mini else (UND, DPG)
  metrics = {}
  for point in points:
    metrics[f"und-{point}"] = Metric(f"{und.title}, {point}", und.read)
    metrics[f"gen-{point}"] = Metric(f"{gen.title}, {point}", gen.read)
  bundle = base.BUNDLE[mini]
  return Table("Figure 5: representations", metrics, rows, folders, EFFECTS, bundle)


EFFECTS = (
  Effect("TA-Tok draws better than VQVAE", "gen-10m", "ta_tok", "vqvae"),
  Effect("TA-Tok reads better than VQVAE", "und-10m", "ta_tok", "vqvae"),
  Effect("Janus draws worse than VQVAE", "gen-10m", "janus", "vqvae", "lower"),
)
