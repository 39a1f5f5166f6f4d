"""Supervised finetuning of the Tar MLLM: questions and prompts alone, from its last weights.

  python -m tarjax.train --config=configs/digits/sft.py --workdir=runs/digits/sft

Starts from ../mllm. 2 CPU cores.
"""

from configs.digits import mllm


def get_config(variant="full"):
  config = mllm.get_config(variant)
  del config.widen, config.ta_tok
  config.init = {"": "../mllm"}
  if variant != "smoke":
    config.update(steps=1850)
  config.data.sources = [
    dict(name="records", path="../encoded/i2t", weight=1.0),
    dict(name="records", path="../encoded/t2i", weight=1.0),
  ]
  return config
