"""What the stages of the paper share: the networks' sizes, the defaults, and small stand-ins.

Table 8 is in the stages' own files. A run starts from its siblings, so all of them live in one
folder: runs/tar/ta_tok, runs/tar/ar_dtok_256_xl, ... Data are found from there too, in
runs/tar/data, which may be a link. Published weights come first:

  python -m tarjax.convert import google/siglip2-so400m-patch14-384 --to runs/tar/siglip2
  python -m tarjax.convert import Qwen/Qwen2.5-1.5B-Instruct --to runs/tar/qwen_1p5b
"""

from typing import Any

from ml_collections import ConfigDict

SIGLIP2 = dict(width=1152, depth=27, heads=16, mlp=4304, image=384, patch=14)
TA_TOK = dict(
  encoder=SIGLIP2,
  decoder=dict(depth=3, heads=12, mlp=3072, positions=256),
  codes=65_536,
  width=1536,  # Qwen2.5-1.5B's
)
QWEN_WORDS = 151_665  # 151,643 byte-level BPE entries and 22 added tokens
SCALES = {"1": 2.0, "2": 1.0, "3": 1.0}  # 729, 169 and 81 words, 2:1:1
COMPUTE = "bfloat16"

# The compiler's options of each chip. More memory for tiles, so that products do not wait for
# operands; no product recomputed inside another; gathers that run beside products.
ASYNC = {
  f"xla_{name}": "true"
  for name in (
    "tpu_enable_async_collective_fusion",
    "tpu_enable_async_collective_fusion_fuse_all_gather",
    "tpu_enable_async_collective_fusion_multiple_steps",
    "tpu_overlap_compute_collective_tc",
    "enable_async_all_gather",
  )
}
SAFE = {"xla_tpu_dot_dot_fusion": "false"}
TILES = "xla_tpu_scoped_vmem_limit_kib"
CHIPS = {
  "v5e": dict(compiler={TILES: "32768", **SAFE}),  # runs gathers beside products unasked
  "v5p": dict(compiler={TILES: "32768", **SAFE, **ASYNC}),
  "v6e": dict(compiler={TILES: "65536", **SAFE, **ASYNC}),
}

# The same stages with small numbers, for tests: 49, 9 and 4 words at the three scales.
TINY_SIGLIP2 = dict(width=32, depth=2, heads=2, mlp=64, image=28, patch=4)
TINY_TA_TOK = dict(
  encoder=TINY_SIGLIP2,
  decoder=dict(depth=1, heads=2, mlp=64, positions=16),
  codes=64,
  width=32,
)
TINY_WORDS = 622  # 600 byte-level BPE entries and the added tokens


def get_config(task: str, *, steps: int, batch: int, lr: float, warmup: int) -> Any:
  """The keys that every run has."""
  return ConfigDict(
    dict(
      task=task,
      seed=0,
      steps=steps,
      batch=batch,
      accumulate=1,  # parts that a batch is taken in, one after the other
      init={},
      frozen={},
      dont_load=[],
      optim=dict(
        name="adamw",
        lr=lr,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.0,  # of matrices only
        warmup=warmup,
        schedule="cosine",
        final=0.0,  # x lr, where the cosine ends
        clip=1.0,
        ema=0.0,
      ),
      mesh=dict(slices=-1, data=-1, fsdp=16, model=1),
      chips=CHIPS,  # what is set otherwise on a chip, unless the command line sets it
      log_every=50,
      save_every=1000,
      eval_every=0,
      keep=2,
    )
  )


def tiny(config: Any) -> Any:
  """A few steps on eight devices; the caller puts small networks in."""
  config.update(steps=4, batch=16, log_every=1, save_every=4)
  config.optim.warmup = 1
  config.mesh.update(data=2, fsdp=2, model=2)
  config.data.update(threads=0)
  return config


def choose(variant: str, choices) -> Any:
  """The entry of that name; a ValueError lists the names."""
  if variant not in choices:
    raise ValueError(f"unknown variant {variant!r}: {', '.join(choices)}")
  return choices[variant]
