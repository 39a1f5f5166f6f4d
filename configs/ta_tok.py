"""TA-Tok: 65,536 visual words in the embedding space of Qwen2.5-1.5B (paper Sec. 3.1, Table 8).

  python -m tarjax.train --config=configs/ta_tok.py --workdir=runs/tar/ta_tok

Starts from ../siglip2 (the encoder, and the frozen teacher) and ../qwen_1p5b (the frozen rows E).
Data: WebDataset tars of pictures in ../data/laion_raw and ../data/laion_aesthetic, half of each;
200M samples. Hardware: 64 TPU v5p, 8.4 GiB of each, 12.2 hours, as `python -m tarjax.plan
--config=configs/ta_tok.py --topology=v5p:4x4x4` estimates.
Metric: rec_cosine and usage. Paper: with these words Tar-1.5B scores 61.0 on GQA and 87.4 on POPE
(Table 9c), and pictures come back at an FID of 2.60 on ImageNet (Table 11).
"""

from configs import base

# The bottleneck and the decoder, which start at random.
NEW = ["encode_task", "in_linear", "quantizer/proj", "out_linear", "decoder"]
NEW += ["decode_task1", "decode_task2"]


def get_config(variant="full"):
  config = base.get_config("ta_tok", steps=390_625, batch=512, lr=2e-4, warmup=15_625)
  config.optim.update(b2=0.99, weight_decay=1e-4, final=0.01)
  config.mesh.fsdp = 8  # 1,152 / 8 is a multiple of 16, and 1,152 / 16 is not
  config.model = dict(base.TA_TOK, dtype=base.COMPUTE, remat="attn,qkv,resid,up")
  config.scales = dict(base.SCALES)
  config.beta = 1.0  # of the commitment (Eq. 3); the codebook's and the reconstruction's are 1 too
  config.init = {"encoder": "../siglip2:vision"}
  config.frozen = {"teacher": "../siglip2:vision"}
  config.codebook = dict(llm="../qwen_1p5b", candidates=151_643, metric="l2", direction="largest")
  config.data = dict(
    sources=[
      dict(name="webdataset", path="../data/laion_raw", weight=1.0),
      dict(name="webdataset", path="../data/laion_aesthetic", weight=1.0),
    ],
    format="images",
    size=384,
    resize="crop",
    workers=16,
  )
  base.choose(variant, {"full": lambda _: None, "tiny": tiny})(config)
  encoder = base.TINY_SIGLIP2 if variant == "tiny" else base.SIGLIP2
  read = encoder["depth"] - 1  # the last block, the norm after it and the head are not read
  unread = (f"blocks[{read}:]", "norm", "head")
  config.dont_load = [f"{top}/{n}" for top in ("encoder", "frozen/teacher") for n in unread]
  config.dont_load += NEW
  return config


def tiny(config):
  config.model.update(base.TINY_TA_TOK)
  config.codebook.candidates = 600
  config.data.update(size=base.TINY_SIGLIP2["image"], workers=0)
  base.tiny(config)
