"""Pictures pre-tokenised for AR-DTok: their visual words, and the VQVAE's codes.

  python -m tarjax.encode --config=configs/digits/encode_vq.py --workdir=runs/digits/encoded_vq

Tokenizers: ../ta_tok and ../vqvae. Apart from `encode`, so that the Tar MLLM need not wait for the
VQVAE. 2 CPU cores.
"""

from typing import Any

from configs.digits import base, encode


def get_config(variant="full"):
  config: Any = encode.get_config(variant)
  config.update(vqvae="../vqvae", vqvae_size=base.VQ_IMAGE)
  config.sets = {task: config.sets[task] for task in ("t2i", "i2t")}
  return config
