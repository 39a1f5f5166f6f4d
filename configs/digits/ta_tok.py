"""TA-Tok: visual words aligned with the small Qwen2.5's embeddings (paper Sec. 3.1).

  python -m tarjax.train --config=configs/digits/ta_tok.py --workdir=runs/digits/ta_tok

Starts from ../siglip2 (encoder, and the frozen teacher) and ../llm (the rows E). 2 CPU cores.
Metric: rec_cosine, usage.
"""

from configs.digits import base

# The bottleneck and the decoder, which start at random.
NEW = ["encode_task", "in_linear", "quantizer/proj", "out_linear", "decoder"]
NEW += ["decode_task1", "decode_task2"]


def get_config(variant="full"):
  config = base.get_config("ta_tok", steps=1400, batch=8, lr=1e-3, warmup=30)
  config.optim.update(name="muon", b2=0.99)
  config.model = dict(base.TA_TOK)
  config.scales = {"1": 1.0, "2": 4.0, "3": 1.0}
  config.beta = 0.25
  config.init = {"encoder": "../siglip2:vision"}
  read = base.VISION["depth"] - 1  # the last block, the norm after it and the head are not read
  unread = (f"blocks[{read}:]", "norm", "head")
  config.dont_load = [f"{top}/{n}" for top in ("encoder", "frozen/teacher") for n in unread]
  config.dont_load += NEW
  config.frozen = {"teacher": "../siglip2:vision"}
  config.codebook = dict(
    llm="../llm",
    candidates=1536,
    metric="l2",
    direction="largest",
    scale=16.0,  # Adam moves W by lr a step whatever the rows' length: longer ones follow sooner
    fit=16,
  )
  config.data = dict(
    sources=[dict(name="digits", task="image", weight=1.0)], format="images", size=base.IMAGE
  )
  return base.variant(config, variant)
