"""What the stages of the laptop run share: the networks' sizes, the data world, the defaults.

Everything is the paper's method at small width: TA-Tok reads 48-px pictures in patches of 4, so
144, 36 and 16 visual words at scales 1, 2 and 3, out of a codebook of 1,024; AR-DTok draws at 24
px (the handwriting was scanned at 8 px), as the paper's reads at 384 px and draws at 256 and more.
"""

from typing import Any

from ml_collections import ConfigDict

IMAGE = 48
TEXT_ROWS = 1558  # 1,536 byte-level BPE entries and Qwen2.5's 22 added tokens
CODES = 1024
ROW_SCALE = 12.0  # the codebook's rows are about this much longer than those of the text
VQ_CODES = 1024
VQ_IMAGE = 24
VQ_LENGTH = 36  # 6 x 6

VISION = dict(width=64, depth=3, heads=4, mlp=192, image=IMAGE, patch=4)
TEXT = dict(vocab=TEXT_ROWS, width=64, depth=2, heads=4, mlp=192, length=32)
LLM: dict[str, Any] = dict(vocab=TEXT_ROWS, width=128, depth=6, heads=4, kv_heads=4, head_dim=32)
LLM |= dict(mlp=192, theta=1e4)  # of a million's frequencies, half hardly turn in a picture
TA_TOK = dict(
  encoder=VISION,
  decoder=dict(depth=2, heads=4, mlp=192, positions=64),
  codes=CODES,
  width=LLM["width"],
)
VQVAE = dict(
  channels=16,
  multipliers=(1, 2, 2),
  blocks=1,
  latent=32,
  codes=VQ_CODES,
  code_width=8,
  l2_normalized=False,
  groups=4,
)
AR_DTOK = dict(
  width=128,
  depth=4,
  heads=8,
  mlp=384,
  vocab=VQ_CODES,
  cond="features",
  cond_width=VISION["width"],
  cond_length=144,
  length=VQ_LENGTH,
  fixed_positions=True,
  init_std=0.05,
  token_dropout=0.0,  # short runs underfit
  resid_dropout=0.0,
  ffn_dropout=0.0,
)


def get_config(task: str, *, steps: int, batch: int, lr: float, warmup: int) -> Any:
  """The keys that every run has."""
  return ConfigDict(
    dict(
      task=task,
      seed=0,
      steps=steps,
      batch=batch,
      init={},
      frozen={},
      dont_load=[],
      optim=dict(
        name="adamw",
        lr=lr,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=1e-4,
        warmup=warmup,
        schedule="cosine",
        final=0.01,
        clip=1.0,
      ),
      mesh=dict(data=-1, fsdp=1, model=1),
      log_every=max(1, steps // 30),
      save_every=max(1, steps // 12),
      eval_every=0,
      keep=1,
    )
  )


def variant(config: Any, name: str) -> Any:
  """ "full" leaves a config as it is; "smoke" is a few steps, to see that everything runs."""
  if name == "smoke":
    config.update(steps=6, batch=8, log_every=2, save_every=4)
    config.optim.warmup = 2
  elif name != "full":
    raise ValueError(f"unknown variant {name!r}: full or smoke")
  return config
