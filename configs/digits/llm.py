"""A small Qwen2.5 on English: the standard library's docstrings and captions.

  python -m tarjax.train --config=configs/digits/llm.py --workdir=runs/digits/llm

Its embeddings become TA-Tok's codebook, and it becomes the Tar MLLM. 2 CPU cores.
"""

from configs.digits import base


def get_config(variant="full"):
  config = base.get_config("mllm", steps=400, batch=4, lr=3e-3, warmup=40)
  config.optim.name = "muon"
  config.model = dict(base.LLM)
  config.words = dict(text_rows=base.TEXT_ROWS, codes=0)
  config.loss_chunk = 32
  config.data = dict(
    sources=[dict(name="documents", weight=1.0)],
    format="packed",
    tokenizer="../tokenizer",
    length=256,
    label_style="clean",
  )
  return base.variant(config, variant)
