"""Dif-DTok: SANA, small and from scratch, draws DC-AE latents from TA-Tok's features (Sec. 3.2).

  python -m tarjax.train --config=configs/digits/dif_dtok.py --workdir=runs/digits/dif_dtok

Codes and latents are computed from pictures by ../ta_tok and ../dc_ae. The paper trains only what
reads the condition, of a published SANA; here there is none, and all is trained. 2 CPU cores.
Metric: explained, the share of the velocity's variance.
"""

from configs.digits import base
from configs.digits.dc_ae import DC_AE


def get_config(variant="full"):
  config = base.get_config("dif_dtok", steps=600, batch=32, lr=2e-3, warmup=30)
  config.optim.update(name="came", b1=0.9, b2=0.999, b3=0.9999, eps=1e-30)
  config.optim.update(weight_decay=0.0, clip=0.1, schedule="constant")
  config.model = dict(
    channels=DC_AE["latent"],
    width=64,
    depth=4,
    heads=4,
    cross_heads=2,
    cross_head_dim=32,
    cond_width=base.VISION["width"],
    size=6,
  )
  config.trained = "all"
  config.ta_tok = dict(base.TA_TOK)
  config.dc_ae = dict(DC_AE)
  config.ta_tok_from = "../ta_tok"
  config.dc_ae_from = "../dc_ae"
  config.dc_ae_size = base.VQ_IMAGE
  config.shift = 1.0
  config.cond_dropout = 0.1
  config.scales = {"1": 1.0, "2": 2.0, "3": 1.0}
  config.data = dict(
    sources=[dict(name="digits", task="image", weight=1.0)], format="images", size=base.IMAGE
  )
  return base.variant(config, variant)
