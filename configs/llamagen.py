"""LlamaGen: draws ImageNet's pictures from their classes, the baseline of Table 11.

  python -m tarjax.convert import c2i_XL_384.pt --to runs/tar/llamagen_xl

takes the published weights, as the paper does, and

  python -m tarjax.evals.imagenet runs/tar/c2i --cfg 1.75 --out xl.npz

draws 50 pictures of each class for tarjax.evals.fid; runs/tar/c2i/bundle.json is
{"components": {"ar_dtok": "../llamagen_xl", "vqvae": "../vq_c2i"}, "sampling": {},
"preprocessing": {"drawn": 384, "canvas": 256}}. To train one (arXiv 2406.06525: 300 epochs):

  python -m tarjax.train --config=configs/llamagen.py:xl --workdir=runs/tar/llamagen_xl

Data: records with "label" and the codes of 384-px views in "vq", in ../encoded_imagenet/data.
LlamaGen's are ten crops of each picture, mirrored and not. Hardware: 64 TPU v5p, as `python -m
tarjax.plan --config=configs/llamagen.py:xl --topology=v5p:4x4x4` estimates: 5.7 GiB of each, 25.1
hours. Paper: FID 2.62 with xl, 2.34 with xxl.
"""

from configs import ar_dtok, base


def get_config(variant="xl"):
  size = base.choose(variant, {name: ar_dtok.SIZES[name] for name in ("xl", "xxl", "tiny")})
  config = base.get_config("llamagen", steps=1_501_200, batch=256, lr=1e-4, warmup=0)
  config.optim.update(b2=0.95, weight_decay=0.05, schedule="constant")
  config.mesh.fsdp = 8
  config.model = dict(size, vocab=16_384, cond="class", cond_vocab=1000, cond_length=1, length=576)
  config.model.update(rotary=True, cond_dropout=0.1, token_dropout=0.1, resid_dropout=0.1)
  config.model.update(ffn_dropout=0.1, dtype=base.COMPUTE, remat="attn,qkv,resid,gate,up")
  config.data = dict(
    sources=[dict(name="records", path="../encoded_imagenet/data", weight=1.0)],
    format="classes",
    threads=4,
  )
  if variant == "tiny":
    config.model.update(vocab=64, cond_vocab=7, length=16)
    base.tiny(config)
  return config
