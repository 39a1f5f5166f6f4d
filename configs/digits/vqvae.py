"""VQVAE: the VQ-16 architecture with two halvings, 6 x 6 codes of 24-px pictures; no GAN or LPIPS.

  python -m tarjax.train --config=configs/digits/vqvae.py --workdir=runs/digits/vqvae

2 CPU cores. Metric: psnr, usage.
"""

from configs.digits import base


def get_config(variant="full"):
  config = base.get_config("vqvae", steps=2300, batch=16, lr=3e-3, warmup=30)
  config.optim.restart_codes = base.VQ_CODES
  config.mix = 0.5
  config.model = dict(base.VQVAE)
  config.data = dict(
    sources=[dict(name="digits", task="image", weight=1.0)], format="images", size=base.VQ_IMAGE
  )
  return base.variant(config, variant)
