"""VQVAE: the VQ-16 architecture with three halvings, 6 x 6 codes a picture; MSE, no GAN or LPIPS.

  python -m tarjax.train --config=configs/digits/vqvae.py --workdir=runs/digits/vqvae

2 CPU cores. Metric: psnr, usage.
"""

from configs.digits import base


def get_config(variant="full"):
  config = base.get_config("vqvae", steps=500, batch=32, lr=2e-3, warmup=30)
  config.model = dict(base.VQVAE)
  config.data = dict(
    sources=[dict(name="digits", task="image", weight=1.0)], format="images", size=base.IMAGE
  )
  return base.variant(config, variant)
