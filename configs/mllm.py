"""Tar MLLM: one Qwen2.5 that reads and draws (paper Sec. 3.3, Tables 1, 2 and 8).

  python -m tarjax.convert init-tar --llm runs/tar/qwen_1p5b --ta-tok runs/tar/ta_tok \
      --multiple 512 --to runs/tar/start_1p5b
  python -m tarjax.train --config=configs/mllm.py:1p5b_pretrain \
      --workdir=runs/tar/mllm_1p5b_pretrain

Variants: {1p5b, 7b}_{pretrain, sft, sft_reflect}, and demo, the released demo run; each of them
also as VARIANT_vqvae, VARIANT_janus and VARIANT_hybrid, see below. Pretraining
starts from ../start_SIZE, a Qwen2.5 with rows for the visual words (at 7B, which is wider than the
codebook, make it with --embed-init selected_rows), SFT from ../mllm_SIZE_pretrain. Pictures are
read as the words of the frozen ../ta_tok, in ../SET/data with SET = i2t, t2i, i2i and ti2i
(../sft_SET/data for SFT), which this makes:

  python -m tarjax.encode --config=configs/encode.py:parquet:/data/recap --workdir=runs/tar/i2t \
      --config.vqvae=

Text is read from parquet files in ../data/text (../data/sft_text). Understanding, generation and
text are mixed 2:2:1, and t2i, i2i and ti2i 4:1:1 within generation; demo mixes 2:4:1, and its
generation is all t2i. sft_reflect, the paper's SFT, gives the share of Self-Reflect-340K within
understanding to judgements of drawn pictures (`tarjax.reflect`, encoded to ../sft_reflect); sft,
the baseline of Table 10, has none. A batch of 1,024 is 1,024 rows, each packed with whole samples
up to 2,048 tokens, where the reference pads one sample to that: the steps of Table 8 see its 100M
samples more than once.

_vqvae, _janus and _hybrid are other representations of pictures (Sec. 4.3), with everything else
the same: codes of ../vqvae at 384 px as words, which start at random; Janus, which draws these and
reads pixels with ../siglip2, frozen, through an MLP; the eight sub-codes of the UniTok ../hybrid at
each of 256 places, which a depth transformer says. The first two start from ../start_SIZE_codes,
and their data are in ../codes_SET/data (../codes_sft_SET/data):

  python -m tarjax.convert init-tar --llm runs/tar/qwen_1p5b --codes 16384 --multiple 512 \
      --to runs/tar/start_1p5b_codes
  python -m tarjax.encode --config=configs/encode.py:parquet:/data/recap \
      --workdir=runs/tar/codes_i2t --config.ta_tok= --config.vqvae_size=384 \
      --config.shown_size=384

_hybrid starts from ../start_SIZE_places (--codes 1) and reads ../places_SET/data, which
`--config.ta_tok= --config.vqvae= --config.unitok=../hybrid` encodes.

Hardware: 64 TPU v5p, as `python -m tarjax.plan --config=configs/mllm.py:1p5b_pretrain
--topology=v5p:4x4x4` estimates. Pretraining: 65.5 GiB of each, 25.4 hours at 1.5B, 50.6 GiB, 115.4
hours at 7B; SFT: 17.1 GiB, 1.0 hours and 25.1 GiB, 4.9 hours. demo, on 32: 11.7 GiB, 2.2 hours.
Paper: Tar-1.5B POPE 88.4, MME-P 1390, GQA 61.1, GenEval .76, DPG 82.96; Tar-7B POPE 87.8, MME-P
1571, GQA 61.3, GenEval .84, DPG 84.19. The demo's model: MME-P 1328, MME-C 278. After 25M samples
(Table 6): Und and DPG of TA-Tok 92.9 and 70.6, of VQVAE 74.2 and 48.2, of Janus 94.4 and 33.4.
"""

from configs import base

# fmt: off
SIZES = {
  "1p5b": dict(width=1536, depth=28, heads=12, kv_heads=2, mlp=8_960,  head_dim=128, tied=True),
  "7b":   dict(width=3584, depth=28, heads=28, kv_heads=4, mlp=18_944, head_dim=128, tied=False),
  "tiny": dict(width=32,   depth=2,  heads=4,  kv_heads=2, mlp=64,     head_dim=8,   tied=True),
}
REMAT = {"1p5b": "attn,qkv,resid,gate,up", "7b": "attn,qkv", "tiny": "attn,qkv"}
CHIPS = {  # what fits the memory of others than v5p
  "1p5b": {
    "v5e": dict(model=dict(remat="attn")),
    "v6e": dict(model=dict(remat="attn,qkv")),
  },
  "7b": {
    "v5e": dict(mesh=dict(fsdp=32), model=dict(remat="attn"), loss_chunk=256),
    "v6e": dict(mesh=dict(fsdp=32), model=dict(remat="attn,qkv,gate")),
  },
  "tiny": {},
}
STAGES = {
  "pretrain": dict(steps=97_656, batch=1024, lr=5e-5, warmup=2_929),
  "sft":      dict(steps=15_625, batch=256,  lr=5e-5, warmup=468),
  "demo":     dict(steps=60_000, batch=64,   lr=5e-5, warmup=1_800),
}
STAGES["sft_reflect"] = STAGES["sft"]
MIXTURE = {"i2t": 2.0, "t2i": 4 / 3, "i2i": 1 / 3, "ti2i": 1 / 3, "text": 1.0}
DEMO_MIXTURE = {"i2t": 2.0, "t2i": 4.0, "text": 1.0}
REFLECT = 340 / (665 + 558 + 118 + 340)  # of SFT's understanding (Table 7, thousands of samples)
OTHERS = ("_vqvae", "_janus", "_hybrid")  # representations
PAPER_CODES = dict(codes=16_384, tokens=576)  # of the VQVAE, and how many a picture has
TINY_CODES = dict(codes=64, tokens=16)
UNITOK = dict(codes=32_768, codebooks=8, code_width=64)
TINY_UNITOK = dict(codes=32, codebooks=4, code_width=8)
# fmt: on


def get_config(variant="1p5b_pretrain"):
  variant, _, name = variant.rpartition("_") if variant.endswith(OTHERS) else (variant, "", "")
  variant = {"demo": "1p5b_demo", "tiny": "tiny_pretrain"}.get(variant, variant)
  size, _, stage = variant.partition("_")
  config = base.get_config("mllm", **base.choose(stage, STAGES))
  own = "sft_" if stage in ("sft", "sft_reflect") else ""
  config.model = dict(base.choose(size, SIZES), vocab=217_600, theta=1e6, eps=1e-6)
  config.model.update(dtype=base.COMPUTE, remat=REMAT[size])
  config.words = dict(text_rows=base.QWEN_WORDS, codes=base.TA_TOK["codes"])
  config.init = {"": f"../mllm_{size}_pretrain" if own else f"../start_{size}"}
  config.ta_tok_from = "../ta_tok"  # whose words the data must be
  config.loss_chunk = 512
  config.chips.update(CHIPS[size])
  mixture = DEMO_MIXTURE if stage == "demo" else MIXTURE
  if stage == "sft_reflect":
    mixture = MIXTURE | {"i2t": 2.0 * (1 - REFLECT), "reflect": 2.0 * REFLECT}
  sources = [
    dict(name="records", path=f"../{own}{task}/data", weight=weight)
    for task, weight in mixture.items()
    if task != "text"
  ]
  sources.append(dict(name="parquet", path=f"../data/{own}text", weight=mixture["text"]))
  config.data = dict(
    sources=sources,
    format="packed",
    tokenizer=f"../start_{size}/tokenizer",
    length=2048,
    scales=dict(base.SCALES),  # drawn for each example
    label_style="reference",
    threads=4,
  )
  if size == "tiny":
    config.model.update(vocab=704)  # 622 + 5 + 64 = 691 rows in use
    config.words.update(text_rows=base.TINY_WORDS, codes=base.TINY_TA_TOK["codes"])
    config.data.update(length=256, window=32)
    config.loss_chunk = 64
    base.tiny(config)
  if name:
    represent(config, name, size)
  return config


def represent(config, name, size):
  """What another representation than TA-Tok changes in a config of this page."""
  tiny, what = size == "tiny", "places" if name == "hybrid" else "codes"
  config.representation = name
  del config.ta_tok_from, config.data.scales
  start = config.init[""]
  pretrained = start.startswith("../mllm")
  config.init = {"": f"{start}_{name}" if pretrained else f"{start}_{what}"}
  config.data.tokenizer = f"../start_{size}_{what}/tokenizer"
  for spec in config.data.sources:
    if spec["name"] == "records":
      spec["path"] = spec["path"].replace("../", f"../{what}_")
  if name == "hybrid":
    config.unitok_from = "../hybrid"
    config.words.update(codes=1, tokens=16 if tiny else 256)
    config.model.vocab = 640 if tiny else 152_064  # 151,665 + 5 + 1 rows in use
    head = dict(depth=1, heads=2, **TINY_UNITOK)
    config.depth_head = head if tiny else dict(depth=3, heads=config.model.heads, **UNITOK)
    config.dont_load = [] if pretrained else ["depth_head"]
    return
  config.vqvae_from = "../vqvae"
  config.words.update(TINY_CODES if tiny else PAPER_CODES)
  if not tiny:
    config.model.vocab = 168_448  # 151,665 + 5 + 16,384 rows in use, a multiple of 512
  if name == "janus":
    net = base.TINY_SIGLIP2 if tiny else base.SIGLIP2
    if not tiny:
      config.mesh.fsdp = 8  # 1,152 / 8 is a multiple of 16, and 1,152 / 16 is not
      for settings in config.chips.values():
        if "mesh" in settings:
          settings.update(mesh=dict(fsdp=8), model=dict(remat="attn"))  # fewer shards are larger
    config.siglip2 = dict(net)
    config.frozen = {"siglip2": "../siglip2:vision"}
    # Hidden state -2 is read: not the last block, the norm after it and the head.
    unread = (f"blocks[{net['depth'] - 1}:]", "norm", "head")
    config.dont_load = [f"frozen/siglip2/{part}" for part in unread]
    config.dont_load += [] if pretrained else ["projector"]
