"""DC-AE: SANA's autoencoder with two halvings, 6 x 6 x 8 latents of 24-px pictures; no GAN.

  python -m tarjax.train --config=configs/digits/dc_ae.py --workdir=runs/digits/dc_ae

For Dif-DTok, `launch/quickstart.sh --dif`. 2 CPU cores. Metric: psnr.
"""

from configs.digits import base

DC_AE = dict(
  latent=8,
  encoder=(
    dict(width=16, depth=1),
    dict(width=32, depth=1),
    dict(width=64, depth=1, attention=True, scales=(5,)),
  ),
  decoder=(
    dict(width=16, depth=1),
    dict(width=32, depth=1),
    dict(width=64, depth=1, attention=True, scales=(5,)),
  ),
  head_dim=16,
  scaling=1.0,  # see `unit`
)


def get_config(variant="full"):
  config = base.get_config("dc_ae", steps=600, batch=32, lr=3e-3, warmup=30)
  config.model = dict(DC_AE)
  config.unit = 0.01
  config.latent_noise = 0.1
  config.data = dict(
    sources=[dict(name="digits", task="image", weight=1.0)], format="images", size=base.VQ_IMAGE
  )
  return base.variant(config, variant)
