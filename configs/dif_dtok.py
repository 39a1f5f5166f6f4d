"""Dif-DTok: SANA-0.6B that draws DC-AE latents from TA-Tok's features (paper Sec. 3.2, Table 8).

  python -m tarjax.train --config=configs/dif_dtok.py:512 --workdir=runs/tar/dif_dtok_512

Trained: the cross-attention and the embedding of the condition, 151M of SANA's 590M parameters.
Frozen: the rest of ../sana, the published SANA-0.6B for 512 px, and the decoder of ../ta_tok. Data:
visual words and latents of 23M pictures in ../encoded_dif_512/data, which this makes with ../dc_ae,
SANA's published DC-AE (`tarjax.convert import` takes both):

  python -m tarjax.encode --config=configs/encode.py:webdataset:/data/gen23m \
      --workdir=runs/tar/encoded_dif_512 --config.vqvae= --config.dc_ae=../dc_ae \
      --config.dc_ae_size=512

Hardware: 16 TPU v5p, 4.0 GiB of each, 3.9 hours, as `python -m tarjax.plan
--config=configs/dif_dtok.py:512 --topology=v5p:2x2x4` estimates.
Metric: explained. Paper, drawing for Tar-1.5B (Table 4): GenEval .77, DPG 82.4.
"""

from configs import base


def get_config(variant="512"):
  config = base.get_config("dif_dtok", steps=479_166, batch=48, lr=1e-4, warmup=4_791)
  config.optim.update(name="came", b1=0.9, b2=0.999, b3=0.9999, eps=1e-30)
  config.optim.update(schedule="constant", clip=0.1)
  config.mesh.fsdp = 8  # 1,152 / 8 is a multiple of 16, and 1,152 / 16 is not
  config.model = dict(
    channels=32,
    width=1152,
    depth=28,
    heads=36,
    cross_heads=16,
    cross_head_dim=72,
    cond_width=1152,
    size=16,
    dtype=base.COMPUTE,
    remat="none",
  )
  config.trained = "condition"
  config.sana_from = "../sana"
  config.ta_tok = dict(base.TA_TOK, dtype=base.COMPUTE)
  config.ta_tok_from = "../ta_tok"
  config.dc_ae = dict(latent=32, scaling=0.41407, dtype=base.COMPUTE)
  config.dc_ae_from = "../dc_ae"
  config.dc_ae_size = 512
  config.shift = 3.0
  config.cond_dropout = 0.1
  config.scales = dict(base.SCALES)
  config.data = dict(
    sources=[dict(name="records", path="../encoded_dif_512/data", weight=1.0)],
    format="latents",
    threads=4,
  )
  base.choose(variant, {"512": lambda _: None, "tiny": tiny, "512_tiny": tiny})(config)
  return config


def tiny(config):
  config.model.update(channels=8, width=32, depth=2, heads=2, cross_heads=2, cross_head_dim=16)
  config.model.update(cond_width=32, size=4)
  config.ta_tok.update(base.TINY_TA_TOK)
  config.dc_ae.latent = 8
  base.tiny(config)
