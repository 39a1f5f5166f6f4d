"""AR-DTok: a LLaMA that draws VQ-16 codes from TA-Tok's features (paper Sec. 3.2, Eq. 4).

Codes of both tokenizers are read from pre-tokenised records; the frozen TA-Tok decoder turns the
visual words of this step's scale into features inside the step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarjax import losses
from tarjax.models.ar_dtok import ArDtok, ArDtokConfig, resize_table
from tarjax.models.ta_tok import TaTok, TaTokConfig
from tarjax.tasks.inputs import Field, draw_scale, word_fields
from tarjax.tasks.ta_tok import merge

RESIZE = ("interp", "reinit")


class Task:
  """Batches are `codes`: codes1..3 int32[b n_s] (visual words), vq int32[b t].

  `config.ta_tok` and `ta_tok_from` are the frozen tokenizer's network and its run. Where another
  resolution is the start (`config.init[""]`, with "positions" in `config.dont_load`),
  `config.abs_pe_resize` says how the longer position table starts: "interp" stretches the other
  run's, "reinit" leaves it at random, as the reference does.
  """

  def __init__(self, config):
    self.config = config
    resize = config.get("abs_pe_resize", "reinit")
    if resize not in RESIZE:
      raise ValueError(f"config.abs_pe_resize={resize!r} is none of {RESIZE}")
    if resize == "interp" and not ("" in config.init and "positions" in config.dont_load):
      raise ValueError(
        "config.abs_pe_resize='interp' needs a run in config.init[''] and 'positions' in "
        "config.dont_load"
      )
    self.net = ArDtokConfig(**config.model)
    self.model: Any = ArDtok(self.net)
    self.ta_tok: Any = TaTok(TaTokConfig(**config.ta_tok))
    vq = Field((self.net.length,), np.int32, self.net.vocab)
    self.fields = word_fields(self.ta_tok.cfg) | {"vq": vq}

  def init(self, rng):
    cond = jnp.zeros((1, self.net.cond_length, self.net.cond_width))
    return self.model.init(rng, cond, jnp.zeros((1, self.net.length), jnp.int32))["params"]

  def init_frozen(self, rng):
    side = self.ta_tok.cfg.encoder.image
    whole = self.ta_tok.init(rng, jnp.zeros((1, side, side, 3)), scale=1)["params"]
    return {"ta_tok": {k: v for k, v in whole.items() if k in DECODING}}

  def start(self, params, frozen, load, workdir, batch):
    """Takes what decodes visual words from the trained TA-Tok, and resizes the position table."""
    if self.config.get("abs_pe_resize") == "interp":
      table = np.asarray(load(f"{self.config.init['']}:positions"))
      table = resize_table(table, self.net.cond_length, self.net.length)
      params = dict(params, positions=table)
    spec = self.config.ta_tok_from
    whole = merge(load(spec), load(spec, frozen=True))
    return params, {"ta_tok": {k: whole[k] for k in DECODING}}

  def static(self, step):
    return {"scale": draw_scale(self.config, step)}

  def loss(self, params, frozen, batch, rng, *, train, scale):
    """Mean cross-entropy of the VQ codes in raster order."""
    cond = self.ta_tok.apply(
      {"params": frozen["ta_tok"]}, batch[f"codes{scale}"], method="decode_indices"
    )
    logits = self.model.apply(
      {"params": params},
      jax.lax.stop_gradient(cond),
      batch["vq"],
      train=train,
      rngs={"dropout": rng},
    )
    total, count = losses.masked_cross_entropy(logits, batch["vq"], jnp.ones(logits.shape[:2]))
    right = (logits.argmax(-1) == batch["vq"]).mean()
    return total / count, {"accuracy": right}


DECODING = (
  "quantizer",
  "out_linear",
  "decoder",
  "decode_task1",
  "decode_task2",
)  # what decode_indices reads
