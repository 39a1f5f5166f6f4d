"""UniTok, the tokenizer of the Hybrid representation (Sec. 4.3, Fig. 5; arXiv 2502.20321).

  python -m tarjax.train --config=configs/hybrid.py --workdir=runs/tar/hybrid
  python -m tarjax.train --config=configs/hybrid.py:lite --workdir=runs/tar/hybrid_lite

full is UniTok's recipe on the paper's 100M pairs, where UniTok's own run has 1,280M: ViTamin-L at
256 px, 256 places of 8 sub-codes, out of 8 x 4,096. It starts at random. Its discriminator, from
three eighths of the run on, is the VQVAE's PatchGAN, see `tasks.hybrid`. lite is a cheaper stand-in
with the same intent, not to be compared with the paper's curve: ../siglip2 at 384 px, 729 codes out
of 32,768 x 16, a transformer that draws patches, no discriminator.

Data: WebDataset tars of pictures with captions in ../data/laion_raw and ../data/laion_aesthetic,
half of each; ../lpips is made as configs/vqvae.py says, ../start_1p5b (its tokenizer) as
configs/mllm.py says. Hardware: 64 TPU chips, 64 pairs each; `python -m tarjax.plan
--config=configs/hybrid.py --topology=v5p:4x4x4` prints the memory of a chip and the hours.
Metric: psnr, lpips, retrieval and usage. UniTok, after its own run: rFID .38, 78.6% zero-shot on
ImageNet. Paper: in Fig. 5 Hybrid understands about as well as VQVAE and draws worse than TA-Tok.
"""

from configs import base

PAIRS, BATCH = 100_000_000, 4096
STEPS = PAIRS // BATCH
# Rows of Qwen2.5 with its padding, which fsdp divides.
TEXT = dict(vocab=151_936, width=768, depth=12, heads=12, mlp=3072, length=77)
VITAMIN = dict(
  image=256, stem=160, widths=(160, 320), depths=(2, 4), width=1024, depth=31, heads=16, mlp=2048,
  drop_path=0.1,
)  # fmt: skip


def get_config(variant="full"):
  config = base.get_config("hybrid", steps=STEPS, batch=BATCH, lr=5e-4, warmup=STEPS // 100)
  config.optim.update(b2=0.95, eps=1e-6, weight_decay=0.02, final=0.1, clip=10.0, ema=0.9999)
  config.optim.discriminator = dict(lr=2e-5, b1=0.5, b2=0.9, weight_decay=0.2)
  config.mesh.fsdp = 4  # the code's 64 channels are cut into whole sublanes
  config.frozen = dict(lpips="../lpips")
  config.weights = dict(l1=0.2, l2=1.0, vq=1.0, clip=1.0)
  config.lpips = dict(weight=1.0)
  config.gan = dict(weight=0.4, start=STEPS * 3 // 8, adaptive=True, channels=64, layers=3)
  config.model = dict(
    encoder=dict(VITAMIN),
    text=dict(TEXT),
    codes=32_768,
    codebooks=8,
    code_width=64,
    projection="attention",
    embed=768,
    beta=0.25,
    dtype=base.COMPUTE,
    remat="attn,resid",
  )
  config.data = dict(
    sources=[
      dict(name="webdataset", path="../data/laion_raw", weight=1.0),
      dict(name="webdataset", path="../data/laion_aesthetic", weight=1.0),
    ],
    format="pairs",
    size=256,
    resize="crop",
    tokenizer="../start_1p5b/tokenizer",
    text_length=TEXT["length"],
    workers=16,
  )
  variants = {"full": [], "lite": [lite], "tiny": [tiny], "tiny_lite": [lite, tiny]}
  for change in base.choose(variant, variants):
    change(config)
  return config


def lite(config):
  config.model.encoder = dict(base.SIGLIP2)
  config.model.decoder = dict(depth=8, heads=16, mlp=4304)
  config.model.update(codebooks=1, code_width=16, projection="linear")
  config.mesh.fsdp = 8
  config.optim.discriminator = {}
  config.gan = dict(weight=0.0)
  config.init = {"encoder": "../siglip2:vision"}
  read = base.SIGLIP2["depth"] - 1  # the last block, the norm after it and the head are not read
  config.dont_load = [f"encoder/{name}" for name in (f"blocks[{read}:]", "norm", "head")]
  config.dont_load += ["decoder", "head", "logit_scale", "norm", "post_quant_proj", "quant_proj"]
  config.dont_load += ["quantizer", "text"]
  config.data.size = base.SIGLIP2["image"]


def tiny(config):
  text = dict(vocab=624, width=16, depth=1, heads=2, mlp=32, length=8)
  config.model.update(text=text, codes=128, embed=16)
  if config.model.codebooks == 1:
    config.model.encoder = dict(base.TINY_SIGLIP2)
    config.model.decoder = dict(depth=1, heads=2, mlp=64)
    read = base.TINY_SIGLIP2["depth"] - 1
    config.dont_load[0] = f"encoder/blocks[{read}:]"
    config.data.size = base.TINY_SIGLIP2["image"]
  else:
    config.model.update(codebooks=2, code_width=16)
    config.model.encoder.update(image=16, stem=8, widths=(8,), depths=(1,), width=32, depth=2)
    config.model.encoder.update(heads=2, mlp=64)
    config.gan.update(start=2, channels=8, layers=2)
    config.data.size = 16
  config.lpips.widths = (8, 8, 8, 8, 8)
  config.data.update(tokenizer="../tokenizer", text_length=text["length"], workers=0)
  base.tiny(config)
