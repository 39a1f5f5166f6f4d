"""AR-DTok: draws VQ-16 codes from TA-Tok's reconstructed features (paper Sec. 3.2, Tables 4, 8).

  python -m tarjax.train --config=configs/ar_dtok.py:256_xl --workdir=runs/tar/ar_dtok_256_xl

The variant is RESOLUTION_SIZE: 256, 512 or 1024 px, and s (22M), b (111M), l, lp (that of the
released weights), xl (775M, the paper's, and meant when no size is said), xxl or xxxl. At 256 px it
starts at random, at 512 from ../ar_dtok_256_SIZE, at 1024 from ../ar_dtok_512_SIZE. Frozen: the
decoder of ../ta_tok. Data: codes of pictures in ../encoded_256/data (50M; 23M at 512, 3M at 1024):

  python -m tarjax.encode --config=configs/encode.py:webdataset:/data/laion_aesthetic \
      --workdir=runs/tar/encoded_256 --config.vqvae=../vqvae --config.vqvae_size=256

Hardware, as `python -m tarjax.plan --config=configs/ar_dtok.py:256_xl --topology=v5p:4x4x4`
estimates: at 256 px 64 TPU v5p, 19.3 GiB of each, 4.3 hours; at 512 px 32, 9.8 GiB, 8.1 hours; at
1024 px 16, 25.0 GiB, 6.6 hours.
Paper, drawing for Tar-1.5B (Table 4): GenEval .76, .79 and .79 at the three resolutions, DPG 83.0,
82.7 and 82.6; at 256 px .75 and 82.2 with the 111M model, .74 and 81.7 with the 22M model.
"""

from configs import base

# fmt: off
RESOLUTIONS = {
  "256":  dict(steps=65_104,  batch=768, lr=4e-4, warmup=2_604),
  "512":  dict(steps=239_583, batch=96,  lr=1e-4, warmup=9_583),
  "1024": dict(steps=62_500,  batch=48,  lr=1e-4, warmup=2_500),
}
BEFORE = {"512": "256", "1024": "512"}
SIZES = {  # heads are 64 wide
  "s":    dict(depth=12, heads=6,  width=384),
  "b":    dict(depth=12, heads=12, width=768),
  "l":    dict(depth=24, heads=16, width=1024),
  "lp":   dict(depth=30, heads=20, width=1280),
  "xl":   dict(depth=36, heads=20, width=1280),
  "xxl":  dict(depth=48, heads=24, width=1536),
  "xxxl": dict(depth=48, heads=40, width=2560),
  "tiny": dict(depth=2,  heads=2,  width=32),
}
# fmt: on


def get_config(variant="256_xl"):
  variant = {"tiny": "256_tiny"}.get(variant, variant)
  resolution, _, size = variant.partition("_")
  size = size or "xl"
  config = base.get_config("ar_dtok", **base.choose(resolution, RESOLUTIONS))
  config.optim.update(b2=0.95, weight_decay=0.05, final=0.01)
  config.mesh.fsdp = 8  # TA-Tok's 1,152 / 8 is a multiple of 16, and 1,152 / 16 is not
  config.model = dict(base.choose(size, SIZES), vocab=16_384, cond="features", cond_width=1152)
  config.model.update(cond_length=729, length=(int(resolution) // 16) ** 2, cond_dropout=0.1)
  config.model.update(token_dropout=0.1, resid_dropout=0.1, ffn_dropout=0.1)
  config.model.update(dtype=base.COMPUTE, remat="attn,qkv,resid,gate,up")
  larger = size in ("xxl", "xxxl")
  if larger or resolution != "512":  # 12 rows of 256 px a chip, or 3 of 1024, are too many
    config.chips.v5e.model = dict(remat="attn")
  if larger:
    config.chips.v6e.model = dict(remat="attn")
  if resolution in BEFORE:
    config.init = {"": f"../ar_dtok_{BEFORE[resolution]}_{size}"}
    config.dont_load = ["positions"]  # a longer table
    config.abs_pe_resize = "interp"  # from the shorter one; "reinit", at random, as the reference
  config.ta_tok = dict(base.TA_TOK, dtype=base.COMPUTE)
  config.ta_tok_from = "../ta_tok"
  config.scales = dict(base.SCALES)
  config.data = dict(
    sources=[dict(name="records", path=f"../encoded_{resolution}/data", weight=1.0)],
    format="codes",
    threads=4,
  )
  if size == "tiny":
    config.model.update(
      vocab=64, cond_width=32, cond_length=49, length=(int(resolution) // 128) ** 2
    )
    config.ta_tok.update(base.TINY_TA_TOK)
    base.tiny(config)
  return config
