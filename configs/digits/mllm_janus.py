"""The laptop's language model as Janus: pixels through ../siglip2 in, VQVAE codes out (Sec. 4.3).

  python -m tarjax.train --config=configs/digits/mllm_janus.py --workdir=runs/digits/mllm_janus

Starts from ../llm as mllm_vqvae.py does. Pictures that are shown take 144 places, one for each
patch of the frozen SigLIP2, whose features a new MLP maps; pictures that are drawn are the codes of
../encoded_vq. To use it, as mllm_vqvae.py says, with bundle_janus.json.

2 CPU cores. Paper (Table 6, at its size): Und 94.4 and DPG 33.4, where TA-Tok has 92.9 and 70.6.
"""

from configs.digits import base, mllm_vqvae


def get_config(variant="full"):
  config = mllm_vqvae.get_config(variant)
  config.representation = "janus"
  config.siglip2 = dict(base.VISION)
  config.frozen = {"siglip2": "../siglip2:vision"}
  # Hidden state -2 is read: not the last block, the norm after it and the head.
  unread = (f"blocks[{base.VISION['depth'] - 1}:]", "norm", "head")
  config.dont_load = [f"frozen/siglip2/{part}" for part in unread]
  config.data.sources = [
    dict(name="digits", task="i2t", weight=2.0),
    *config.data.sources[1:],
  ]
  return config
