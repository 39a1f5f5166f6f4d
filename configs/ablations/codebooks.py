"""Must the codebook be made of an LLM's embeddings, or would an ordinary one do?

  bash launch/ablation.sh configs/ablations/codebooks.py --base runs/tar --data DATA
  bash launch/ablation.sh configs/ablations/codebooks.py --mini

Table 9, GQA, MME-P, POPE and DPG: (a) 32,768 random codes of width 16: 59.4, 1261, 86.7, 70.9; (b)
the same of width 1,536: not converged; (c) 65,536 of the LLM's: 61.0, 1428, 87.4, 70.6. (a) and (b)
are ordinary quantisers as LlamaGen's: a trained table, unit vectors, linear maps to its width and
back, and a commitment of a quarter of the mean over the width (of the sum, the twin's (a) falls to
1% of its codes too). The MLLM's rows for their words start at random. Every row has a TA-Tok of its
own, with its words, an AR-DTok and an MLLM. `min_usage` ends a TA-Tok whose codes fall out of use,
as "not converged". The twin has 1,024 codes everywhere, of width 16, 128 and 128.
Hardware, metrics: configs/ablations/base.py; chip-hours: two TA-Toks, two AR-DToks, 50M samples.
DATA also holds what is encoded again: parquet in i2t and t2i, tars in laion_aesthetic.
"""

import configs.ar_dtok
import configs.ta_tok
from configs.ablations import base
from configs.digits import ar_dtok as digits_ar_dtok
from configs.digits import ta_tok as digits_ta_tok
from tarjax.ablations import Effect, Folder, Metric, Row, Run, Table, encode, same, train
from tarjax.evals.table_scores import DPG, GENERATION, UNDERSTANDING, benchmark

FILE = "configs/ablations/codebooks.py"
TABLE = {"model.codebook": "table", "model.l2_normalized": True}
VARIANTS = {  # of TA-Tok, by size
  False: {
    "a": TABLE | {"model.codes": 32_768, "model.width": 16},
    "b": TABLE | {"model.codes": 32_768},
    "c": {},
  },
  True: {"a": TABLE | {"model.width": 16}, "b": TABLE, "c": {}},
}
COMMIT = 0.25  # times the mean over the width; of unit vectors, the loss has the sum
USAGE = {
  False: (0.1, 15_625),
  True: (0.05, 400),
}  # least share of codes in use, after so many steps
STAGES = ("ta_tok", "ar_dtok", "mllm")
MINI_AR_STEPS = 2400


def get_config(variant="c_ta_tok"):
  """ROW_STAGE, as a_ta_tok, c_ar_dtok, b_mllm."""
  name, mini = base.split(variant, [f"{row}_{stage}" for row in "abc" for stage in STAGES])
  row, _, stage = name.partition("_")
  return {"ta_tok": ta_tok, "ar_dtok": ar_dtok, "mllm": mllm}[stage](row, mini)


def ta_tok(row, mini):
  config = (digits_ta_tok if mini else configs.ta_tok).get_config()
  config.model.update(codebook="llm", l2_normalized=False)
  config.dont_load = [*config.dont_load, "quantizer/table"]
  config.min_usage, config.min_usage_after = USAGE[mini]
  config.lock()
  config.update_from_flattened_dict(VARIANTS[mini][row])
  if config.model.l2_normalized:
    config.beta = COMMIT / config.model.width
  return config


def ar_dtok(row, mini):
  config = digits_ar_dtok.get_config() if mini else configs.ar_dtok.get_config("256_xl")
  config.ta_tok = ta_tok(row, mini).model
  if mini:
    config.update(steps=MINI_AR_STEPS)
  return config.lock()


def mllm(row, mini):
  config = base.mllm(mini)
  codes = ta_tok(row, mini).model.codes
  with config.unlocked():
    config.words.codes = codes
    if not mini:  # the start has rows for these words, in a multiple of 512
      config.model.vocab = -(-(config.words.text_rows + 5 + codes) // 512) * 512
    elif row != "c":
      config.widen.embed_init = "random"
      config.ta_tok = ta_tok(row, mini).model
  return config


def mini_folder(row, seed):
  variant = f"{FILE}:mini_{row}_"
  learnt = ("llm", "ta_tok", "tokenizer_tar", "encoded")
  runs = {
    "ta_tok": train(variant + "ta_tok", reads=("siglip2", "llm"), seed=seed),
    "encoded": encode("configs/digits/encode.py", reads=("ta_tok",)),
    "encoded_vq": encode("configs/digits/encode_vq.py", reads=("ta_tok", "vqvae")),
    "ar_dtok": train(variant + "ar_dtok", reads=("ta_tok", "encoded_vq"), seed=seed),
    "mllm": train(variant + "mllm", reads=learnt, seed=seed),
    "score": base.scored(True),
  }
  return Folder(runs)


def full_folder(row, seed):
  variant = f"{FILE}:{row}_"
  start = (
    "init-tar",
    "--llm",
    "{folder}/qwen_1p5b",
    "--ta-tok",
    "{folder}/ta_tok",
    "--to",
    "{run}",
  )
  start += ("--multiple", "512", "--embed-init", "codebook" if row == "c" else "random")
  ta_tok_reads = ("siglip2", "qwen_1p5b", "data")
  pictures = "configs/encode.py:webdataset:{data}/laion_aesthetic"
  for_ar = ("--config.vqvae=../vqvae", "--config.vqvae_size=256")
  ar_reads = ("ta_tok", "encoded_256")
  runs = {
    "ta_tok": train(variant + "ta_tok", reads=ta_tok_reads, seed=seed),
    "start_1p5b": Run("tarjax.convert", start, ("qwen_1p5b", "ta_tok"), "provenance.json"),
    "i2t": encode("configs/encode.py:parquet:{data}/i2t", "--config.vqvae=", reads=("ta_tok",)),
    "t2i": encode("configs/encode.py:parquet:{data}/t2i", "--config.vqvae=", reads=("ta_tok",)),
    "encoded_256": encode(pictures, *for_ar, reads=("ta_tok", "vqvae")),
    "ar_dtok_256_xl": train(variant + "ar_dtok", reads=ar_reads, seed=seed),
    "mllm": train(variant + "mllm", reads=base.reads(False), seed=seed),
    "score": base.scored(False),
  }
  return Folder(runs)


def get_table(mini):
  seeds = base.SEEDS[mini]
  folder = mini_folder if mini else full_folder
  metrics = {"und": UNDERSTANDING, "gen": GENERATION} if mini else METRICS
  rows = {
    row: Row(
      title,
      same([f"{row}-{seed}/score" for seed in seeds], *metrics),
      {"gen": paper["dpg"]} if mini and paper else paper,
    )
    for row, (title, paper) in PAPER.items()
  }
  drawn = "gen" if mini else "dpg"
  reading = () if mini else tuple(k for k in METRICS if k != "dpg")
  effects = (
    Effect("(b) does not converge", drawn, "b", expected="not converged"),
    *(Effect("LLM's embeddings read better", m, "c", "a") for m in reading or ("und",)),
    Effect("and draw as well", drawn, "c", "a", "not lower", 0.03 if mini else 0.5),
  )
  return Table(
    "Table 9: codebooks",
    metrics,
    rows,
    {f"{row}-{seed}": folder(row, seed) for row in PAPER for seed in seeds},
    effects,
    base.BUNDLE[mini],
  )


METRICS = {
  "gqa": Metric("GQA", lambda run: benchmark("gqa", "exact_match", run, 100)),
  "mme": Metric("MME-P", lambda run: benchmark("mme", "perception", run)),
  "pope": Metric("POPE F1", lambda run: benchmark("pope", "f1", run, 100)),
  "dpg": DPG,
}
# fmt: off
PAPER = {
  "a": ("(a) random, narrow", {"gqa": 59.4, "mme": 1261, "pope": 86.7, "dpg": 70.9}),
  "b": ("(b) random, wide",   {}),
  "c": ("(c) LLM",            {"gqa": 61.0, "mme": 1428, "pope": 87.4, "dpg": 70.6}),
}
# fmt: on
