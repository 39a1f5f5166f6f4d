"""Pre-tokenises your own pictures with the tokenizers of finished runs.

  python -m tarjax.encode --config=configs/encode.py:folder:/data/pictures \
      --workdir=runs/digits/mine

The variant is NAME:PATH, a format of the README's table and a place. The tokenizers are ../ta_tok
and ../vqvae of the workdir; `--config.vqvae=` without a value leaves the VQVAE out, and
`--config.dc_ae=../dc_ae --config.dc_ae_size=512` adds latents for Dif-DTok. A language model of
VQVAE words takes `--config.ta_tok= --config.vqvae_size=384`, and Janus `--config.shown_size=384`
too, which keeps the pixels of pictures that a user shows. The codes go to WORKDIR/data. On a pod,
start it on every worker.
"""

from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant="folder:pictures"):
  name, _, path = variant.partition(":")
  return ConfigDict(
    dict(
      ta_tok="../ta_tok",
      vqvae="../vqvae",
      vqvae_size=0,  # as the VQVAE was trained
      dc_ae="",  # for Dif-DTok
      dc_ae_size=0,
      unitok="",  # for the Hybrid representation
      shown_size=0,
      seed=0,
      batch=64,
      shard=8192,
      max_damaged=0.01,
      workers=0,
      process=0,
      processes=0,
      sets=dict(data=dict(name=name, path=str(Path(path).absolute()))),
    )
  )
