"""Self Reflect on digits: finetuning goes on with judgements of the model's own pictures.

  python -m tarjax.reflect --model runs/digits --prompts digits --count 1500 --judge rules \
      --out runs/digits/reflect
  python -m tarjax.encode --config=configs/encode.py:records:runs/digits/reflect/data \
      --workdir=runs/digits/reflect_words --config.vqvae=
  python -m tarjax.train --config=configs/digits/sft_reflect.py --workdir=runs/digits/sft_reflect

Starts from ../sft. With "mllm": "sft_reflect" in bundle.json, generate --best_of N uses it. 2 CPU
cores. One run, 240 prompts: .56 of single pictures are right, .69 of the best of 4 (ids fed), where
a judge that knows would find .87; without this stage the best of 4 are no better than the first.
"""

from configs.digits import sft


def get_config(variant="full"):
  config = sft.get_config(variant)
  config.init = {"": "../sft"}
  if variant != "smoke":
    config.update(steps=1300)
    config.optim.lr = 5e-4
  config.data.sources = [
    *config.data.sources,
    dict(name="records", path="../reflect_words/data", weight=2.0),
  ]
  return config
