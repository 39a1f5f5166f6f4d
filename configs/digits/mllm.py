"""Tar MLLM pretraining: understanding, generation and text 2:2:1 in packed rows (paper Sec. 3.3).

  python -m tarjax.train --config=configs/digits/mllm.py --workdir=runs/digits/mllm

Starts from ../llm, its table widened by the codebook of ../ta_tok (Eq. 2). 2 CPU cores.
"""

from configs.digits import base


def get_config(variant="full"):
  config = base.get_config("mllm", steps=900, batch=4, lr=2e-3, warmup=60)
  config.optim.update(name="muon", b2=0.99)
  config.model = dict(base.LLM, vocab=2587)  # 1,558 + 5 + 1,024 rows
  config.words = dict(text_rows=base.TEXT_ROWS, codes=base.CODES)
  config.ta_tok = dict(base.TA_TOK)
  config.widen = dict(llm="../llm", ta_tok="../ta_tok", embed_init="codebook", scale=base.ROW_SCALE)
  config.loss_chunk = 32
  config.data = dict(
    sources=[
      dict(name="records", path="../encoded/i2t", weight=2.0),
      dict(name="records", path="../encoded/t2i", weight=4 / 3),
      dict(name="records", path="../encoded/i2i", weight=1 / 3),
      dict(name="records", path="../encoded/ti2i", weight=1 / 3),
      dict(name="digits", task="text", weight=1.0),
    ],
    format="packed",
    tokenizer="../tokenizer_tar",
    length=256,
    scales={"1": 1.0, "2": 14.0, "3": 1.0},
    label_style="reference",
  )
  return base.variant(config, variant)
