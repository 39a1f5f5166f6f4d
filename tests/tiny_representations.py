"""The language model's config with each way to show and draw pictures, at a small size."""

from ml_collections import ConfigDict

TEXT, CODES = 312, 16  # 290 byte-level BPE entries and the 22 added tokens
SIGLIP2 = dict(width=16, depth=3, heads=2, mlp=24, image=12, patch=4)  # 9 places
MODEL = dict(vocab=336, width=24, depth=2, heads=4, kv_heads=2, head_dim=8, mlp=32)
DEPTH_HEAD = dict(codes=24, codebooks=3, code_width=6, depth=1, heads=2)
WORDS = dict(text_rows=TEXT, codes=CODES, tokens=4)


def config_of(name, **more):
  made = dict(task="mllm", representation=name, model=MODEL, words=WORDS, loss_chunk=16, seed=3)
  made |= {"siglip2": SIGLIP2} if name == "janus" else {}
  if name == "hybrid":
    made |= {"depth_head": DEPTH_HEAD, "words": dict(text_rows=TEXT, codes=1, tokens=4)}
  return ConfigDict(made | more)
