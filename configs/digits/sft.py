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
    config.update(steps=5400)
  config.data.sources = [
    dict(name="records", path="../encoded/i2t", weight=2.0),
    dict(name="records", path="../encoded/t2i", weight=3.0),
  ]
  return config
