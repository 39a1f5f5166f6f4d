"""A stage of the laptop run on your own data.

  python -m tarjax.train --config=configs/own_data.py:vqvae:folder:/data/pictures \
      --workdir=runs/mine/vqvae

The variant is STAGE:NAME:PATH: a stage, a format of the README's table, and a place. vqvae needs
pictures only, siglip2 also captions and a tokenizer, ta_tok also ../siglip2 and ../llm; ar_dtok,
mllm and sft read the shards that `tarjax.encode` wrote (configs/encode.py), for example
mllm:records:runs/mine/encoded/data. The networks and steps are those of configs/digits.
"""

from pathlib import Path

from configs.digits import ar_dtok, mllm, sft, siglip2, ta_tok, vqvae

STAGES = {
  "siglip2": siglip2,
  "vqvae": vqvae,
  "ta_tok": ta_tok,
  "ar_dtok": ar_dtok,
  "mllm": mllm,
  "sft": sft,
}


def get_config(variant="vqvae:folder:pictures"):
  stage, name, path = (*variant.split(":", 2), "", "")[:3]
  if stage not in STAGES or not path:
    raise ValueError(f"the variant is STAGE:NAME:PATH with a stage of {list(STAGES)}")
  config = STAGES[stage].get_config()
  config.data.sources = [dict(name=name, path=str(Path(path).absolute()), weight=1.0)]
  config.data.workers = 0  # processes that decode
  config.data.max_damaged = 0.01
  if stage in ("siglip2", "vqvae", "ta_tok"):
    config.data.resize = "crop"
  return config
