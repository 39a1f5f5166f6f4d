"""UniTok, small, on composed digits and their captions: the Hybrid representation's tokenizer.

  python -m tarjax.train --config=configs/digits/hybrid.py --workdir=runs/digits/hybrid

Starts at random and needs ../tokenizer. 24-px pictures are 6 x 6 places of four sub-codes. 2 CPU
cores. Metric: psnr, retrieval, codes_usage.
"""

from configs.digits import base

HYBRID = dict(
  encoder=dict(
    image=base.VQ_IMAGE, stem=32, widths=(), depths=(), width=64, depth=2, heads=2, mlp=128,
    drop_path=0.0,
  ),
  text=base.TEXT,
  codes=1024,
  codebooks=4,
  code_width=16,
  embed=base.TEXT["width"],
)  # fmt: skip


def get_config(variant="full"):
  config = base.get_config("hybrid", steps=1000, batch=32, lr=2e-3, warmup=30)
  config.model = dict(HYBRID)
  config.weights = dict(l1=0.2, l2=1.0, vq=1.0, clip=1.0)
  config.data = dict(
    sources=[dict(name="digits", task="caption", weight=1.0)],
    format="pairs",
    size=base.VQ_IMAGE,
    tokenizer="../tokenizer",
    text_length=base.TEXT["length"],
  )
  return base.variant(config, variant)
