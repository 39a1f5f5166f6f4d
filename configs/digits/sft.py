"""Supervised finetuning of the Tar MLLM: the same mixture at a lower rate, from its last weights.

  python -m tarjax.train --config=configs/digits/sft.py --workdir=runs/digits/sft

Starts from ../mllm. 2 CPU cores.
"""

from configs.digits import mllm


def get_config(variant="full"):
  config = mllm.get_config(variant)
  del config.widen, config.ta_tok
  config.init = {"": "../mllm"}
  if variant != "smoke":
    config.update(steps=200)
  config.optim.lr = 1e-3
  return config
