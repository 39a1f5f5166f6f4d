"""SigLIP2 from scratch on composed digits and their captions.

  python -m tarjax.train --config=configs/digits/siglip2.py --workdir=runs/digits/siglip2

With a published SigLIP2 imported, this stage is skipped. 2 CPU cores.
"""

from configs.digits import base


def get_config(variant="full"):
  config = base.get_config("siglip2", steps=1700, batch=16, lr=6e-3, warmup=30)
  config.optim.name = "muon"
  config.dense = 60.0
  # Nothing and ten digits, nothing and six inks; without `ground`, that takes 18 codes at random.
  config.naming = dict(weight=6.0, names=(11, 7), ground=20.0)
  config.model = dict(vision=base.VISION, text=base.TEXT)
  config.data = dict(
    sources=[dict(name="digits", task="caption", weight=1.0)],
    format="pairs",
    size=base.IMAGE,
    tokenizer="../tokenizer",
    text_length=base.TEXT["length"],
  )
  return base.variant(config, variant)
