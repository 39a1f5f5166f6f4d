"""The laptop's language model with the VQVAE's codes as words (paper Sec. 4.3, "full pixel").

  python -m tarjax.train --config=configs/digits/mllm_vqvae.py --workdir=runs/digits/mllm_vqvae

Starts from ../llm, with random rows for the 1,024 codes of ../vqvae, 36 to a picture; reads
../encoded_vq. The network, the optimizer and the steps are those of mllm.py. To use it:

  mkdir runs/digits/as_vqvae
  cp configs/digits/bundle_vqvae.json runs/digits/as_vqvae/bundle.json
  python -m tarjax.generate --model runs/digits/as_vqvae --prompt "a red three" --out out.png

2 CPU cores. Paper (Table 6, at its size): Und 74.2 and DPG 48.2, where TA-Tok has 92.9 and 70.6.
"""

from configs.digits import base, mllm


def get_config(variant="full"):
  config = mllm.get_config(variant)
  config.representation = "vqvae"
  config.words.update(codes=base.VQ_CODES, tokens=base.VQ_LENGTH)
  del config.ta_tok, config.data.scales
  config.widen = dict(llm="../llm", embed_init="random")
  config.vqvae_from = "../vqvae"
  config.data.sources = [
    dict(name="records", path="../encoded_vq/i2t", weight=2.0),
    dict(name="records", path="../encoded_vq/t2i", weight=2.0),
    dict(name="digits", task="text", weight=1.0),
  ]
  return config
