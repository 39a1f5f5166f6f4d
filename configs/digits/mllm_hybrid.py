"""The laptop's language model with sub-codes of UniTok (the Hybrid representation of Sec. 4.3).

  python -m tarjax.data.tokenizer runs/digits/tokenizer runs/digits/tokenizer_places 1
  python -m tarjax.encode --config=configs/digits/encode_vq.py \
      --workdir=runs/digits/encoded_places --config.ta_tok= --config.vqvae= \
      --config.unitok=../hybrid
  python -m tarjax.train --config=configs/digits/mllm_hybrid.py --workdir=runs/digits/mllm_hybrid

Starts from ../llm, with one visual word, <I0>, for a place of a picture: 36, of four sub-codes of
../hybrid each. To use it, as mllm_vqvae.py says, with bundle_hybrid.json. 2 CPU cores.
"""

from configs.digits import hybrid, mllm


def get_config(variant="full"):
  config = mllm.get_config(variant)
  config.representation = "hybrid"
  config.words.update(codes=1, tokens=36)
  config.model.vocab = config.words.text_rows + 6
  del config.ta_tok, config.data.scales
  config.widen = dict(llm="../llm", embed_init="random")
  config.unitok_from = "../hybrid"
  config.depth_head = {k: hybrid.HYBRID[k] for k in ("codes", "codebooks", "code_width")}
  config.depth_head.update(depth=2, heads=4)
  config.data.tokenizer = "../tokenizer_places"
  config.data.sources = [
    dict(name="records", path="../encoded_places/i2t", weight=2.0),
    dict(name="records", path="../encoded_places/t2i", weight=2.0),
    dict(name="digits", task="text", weight=1.0),
  ]
  return config
