"""AR-DTok: draws VQVAE codes from TA-Tok's reconstructed features, scales mixed (paper Sec. 3.2).

  python -m tarjax.train --config=configs/digits/ar_dtok.py --workdir=runs/digits/ar_dtok

Reads the pre-tokenised pictures of `tarjax.encode` and the decoder of ../ta_tok. 2 CPU cores.
"""

from configs.digits import base


def get_config(variant="full"):
  config = base.get_config("ar_dtok", steps=5500, batch=8, lr=3e-3, warmup=60)
  config.optim.weight_decay = 0.05
  config.model = dict(base.AR_DTOK)
  config.ta_tok = dict(base.TA_TOK)
  config.ta_tok_from = "../ta_tok"
  config.scales = {"1": 1.0, "2": 14.0, "3": 1.0}
  config.data = dict(
    sources=[
      dict(name="records", path="../encoded_vq/t2i", weight=5.0),
      dict(name="records", path="../encoded_vq/i2t", weight=4.0),
    ],
    format="codes",
  )
  return base.variant(config, variant)
