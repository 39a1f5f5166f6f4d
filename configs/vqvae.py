"""VQ-16, the image tokenizer under AR-DTok: the paper takes LlamaGen's published one.

  python -m tarjax.convert import vq_ds16_t2i.pt --to runs/tar/vqvae

does as the paper. To train one (LlamaGen's recipe, arXiv 2406.06525: ImageNet, 40 epochs), with
LPIPS's published weights:

  python -m tarjax.convert import vgg16-397923af.pth vgg.pth --to runs/tar/lpips
  python -m tarjax.train --config=configs/vqvae.py --workdir=runs/tar/vqvae

Data: WebDataset tars of pictures in ../data/imagenet. The loss is the squared error, LPIPS, the
codebook's terms and, from update 20,000 on, that of a PatchGAN discriminator and what it says;
`mse` is the squared error and the codebook's terms alone. Batch norms of the discriminator are over
all 128 pictures (LlamaGen: over each GPU's). Hardware: 64 TPU v5p, 4.6 GiB of each, 2.8 hours, as
`python -m tarjax.plan --config=configs/vqvae.py --topology=v5p:4x4x4` estimates. Metric: psnr,
lpips and usage. LlamaGen: rFID 2.19 at 256 px.
"""

from configs import base


def get_config(variant="full"):
  config = base.get_config("vqvae", steps=400_365, batch=128, lr=1e-4, warmup=0)
  config.optim.update(b2=0.95, schedule="constant")
  config.mesh.fsdp = 1  # 72M parameters: every chip holds them
  config.frozen = dict(lpips="../lpips")
  config.lpips = dict(weight=1.0)
  config.gan = dict(weight=0.5, start=20_000, adaptive=False, channels=64, layers=3)
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
    zoom=1.25,  # of pictures whose short side is up to 320
    flip=True,
    workers=16,
  )
  base.choose(variant, {"full": lambda _: None, "mse": mse, "tiny": tiny})(config)
  return config


def mse(config):
  config.update(frozen={}, lpips=dict(weight=0.0), gan=dict(weight=0.0))


def tiny(config):
  config.model.update(channels=16, multipliers=(1, 2), blocks=1, latent=16, codes=64, groups=4)
  config.data.update(size=16, workers=0)
  config.lpips.widths = (8, 8, 8, 8, 8)
  config.gan.update(start=2, adaptive=True, channels=8, layers=2)
  base.tiny(config)
