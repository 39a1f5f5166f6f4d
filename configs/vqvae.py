"""VQ-16, the image tokenizer under AR-DTok: the paper takes LlamaGen's published one.

  python -m tarjax.convert import vq_ds16_t2i.pt --to runs/tar/vqvae

does as the paper. To train one (LlamaGen's recipe, arXiv 2406.06525: ImageNet, 40 epochs):

  python -m tarjax.train --config=configs/vqvae.py --workdir=runs/tar/vqvae

Data: WebDataset tars of pictures in ../data/imagenet. The loss is the squared error and the
codebook's terms; LlamaGen adds a perceptual and, after 20,000 steps, an adversarial loss, which are
not here, so pictures stay smoother than its rFID of 2.19 at 256 px. Hardware: 64 TPU chips;
`python -m tarjax.plan --config=configs/vqvae.py --topology=v5p:4x4x4` prints the memory of a chip
and the hours. Metric: psnr and usage.
"""

from configs import base


def get_config(variant="full"):
  config = base.get_config("vqvae", steps=400_365, batch=128, lr=1e-4, warmup=0)
  config.optim.update(b2=0.95, schedule="constant")
  config.mesh.fsdp = 1  # 72M parameters: every chip holds them
  config.model = dict(
    channels=128,
    multipliers=(1, 1, 2, 2, 4),
    blocks=2,
    latent=256,
    codes=16_384,
    code_width=8,
    groups=32,
    commit=0.25,
    dtype=base.COMPUTE,
  )
  config.data = dict(
    sources=[dict(name="webdataset", path="../data/imagenet", weight=1.0)],
    format="images",
    size=256,
    resize="crop",
    workers=16,
  )
  base.choose(variant, {"full": lambda _: None, "tiny": tiny})(config)
  return config


def tiny(config):
  config.model.update(channels=16, multipliers=(1, 2), blocks=1, latent=16, codes=64, groups=4)
  config.data.update(size=8, workers=0)
  base.tiny(config)
