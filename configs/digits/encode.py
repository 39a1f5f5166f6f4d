"""Pictures of every image task, pre-tokenised for the Tar MLLM.

  python -m tarjax.encode --config=configs/digits/encode.py --workdir=runs/digits/encoded

Tokenizer: ../ta_tok. 2 CPU cores.
"""

from ml_collections import ConfigDict


def get_config(variant="full"):
  if variant not in ("full", "smoke"):
    raise ValueError(f"unknown variant {variant!r}: full or smoke")
  share = {"t2i": 10_000, "i2t": 8_000, "i2i": 1_500, "ti2i": 1_500}
  return ConfigDict(
    dict(
      ta_tok="../ta_tok",
      vqvae="",
      vqvae_size=0,
      seed=0,
      batch=64,
      shard=2_000,
      sets={
        task: dict(name="digits", task=task, count=count if variant == "full" else 64)
        for task, count in share.items()
      },
    )
  )
