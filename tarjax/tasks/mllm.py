"""The language model: text only, Tar pretraining on visual and text tokens, SFT (paper Sec. 3.3).

Next-token cross-entropy over packed rows: the sum of token losses over the number of labelled
tokens of the global batch.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarjax import losses
from tarjax.models import tar
from tarjax.models.qwen2 import Qwen2, Qwen2Config, head_table
from tarjax.models.ta_tok import TaTok, TaTokConfig
from tarjax.tasks.ta_tok import merge


class Task:
  """Batches are `packed`: tokens, labels, segments, positions int32[b l].

  `config.words` counts the rows in use: text_rows (length of the text tokenizer) and codes (visual
  words, 0 for a text model). `config.widen` starts this run from a text model: llm and ta_tok
  (checkpoint specs), embed_init, and scale, which the codebook is divided by to have rows like the
  text's; `config.ta_tok` is then the tokenizer's network. Without it, a run starts from config.init
  or from scratch, and `config.ta_tok_from` may name the run whose words the data must be. With
  `config.pre_align` only the rows of what is not text are trained (the pre-alignment of Table 3).
  """

  def __init__(self, config):
    self.config = config
    self.net = Qwen2Config(**config.model)
    self.model: Any = Qwen2(self.net)
    words = config.words
    self.first_image = words.text_rows  # <im_start>, and after it all that is not text
    self.used = words.text_rows + (tar.MARKS + words.codes if words.codes else 0)
    if self.used > self.net.vocab:
      raise ValueError(f"model.vocab={self.net.vocab} rows do not hold {self.used} words")
    if config.get("pre_align", False) and config.optim.weight_decay:
      raise ValueError("config.pre_align trains new rows only: set config.optim.weight_decay to 0")

  def init(self, rng):
    return self.model.init(rng, jnp.zeros((1, 8), jnp.int32))["params"]

  def init_frozen(self, rng):
    return {}

  def start(self, params, frozen, load, workdir, batch):
    """Fills the tables of a text model up with visual words (paper Eq. 2: {E, C} = {E, E W})."""
    widen, words = self.config.get("widen"), self.config.words
    if not widen:
      return params, frozen
    codebook = None
    if widen.embed_init == "codebook":
      net: Any = TaTok(TaTokConfig(**self.config.ta_tok))
      whole = merge(load(widen.ta_tok), load(widen.ta_tok, frozen=True))
      whole = {"quantizer": jax.tree.map(np.asarray, whole["quantizer"])}
      codebook = np.asarray(net.apply({"params": whole}, method="codebook")) / widen.scale
    params = tar.widen(
      load(widen.llm),
      widen.embed_init,
      text_rows=words.text_rows,
      rows=self.net.vocab,
      codebook=codebook,
      codes=words.codes,
      seed=self.config.seed,
    )
    print(
      f"widened: {words.text_rows} text rows from {widen.llm}, {tar.MARKS} marks from their mean, "
      f"{words.codes} visual words by embed_init={widen.embed_init}"
    )
    return params, frozen

  def static(self, step):
    return {}

  def loss(self, params, frozen, batch, rng, *, train):
    """Cross-entropy over labelled tokens; text and visual words are also logged apart."""
    if self.config.get("pre_align", False):
      params = self._only_new(params)
    packed = {name: batch[name] for name in ("positions", "segments")}
    hidden, _ = self.model.apply({"params": params}, batch["tokens"], **packed)
    # aligned with what comes next; after the last position, nothing does
    labels = jnp.pad(batch["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=losses.IGNORED)
    image = labels >= self.first_image
    total, count, parts = losses.chunked_cross_entropy(
      hidden,
      head_table(self.net, params),
      labels,
      self.config.loss_chunk,
      self.used,  # padding rows of the table are no words
      {"text": ~image, "image": image},
    )
    metrics: dict[str, Any] = {f"loss_{k}": s / jnp.maximum(n, 1) for k, (s, n) in parts.items()}
    metrics["filled"] = (batch["segments"] > 0).mean()
    metrics["counts"] = {"loss": count} | {f"loss_{k}": n for k, (_, n) in parts.items()}
    return total / jnp.maximum(count, 1), metrics

  def _only_new(self, params):
    """The same parameters, of which only the rows after the text's have a gradient."""
    fixed = jax.lax.stop_gradient(params)

    def rows(table, kept, axis):
      shape = [1, 1]
      shape[axis] = -1
      new = jnp.arange(table.shape[axis]).reshape(shape) >= self.first_image
      return jnp.where(new, table, kept)

    embed, kept = params["embed"]["embedding"], fixed["embed"]["embedding"]
    tables = {"embed": dict(fixed["embed"], embedding=rows(embed, kept, 0))}
    if "lm_head" in params:
      head, kept = params["lm_head"]["kernel"], fixed["lm_head"]["kernel"]
      tables["lm_head"] = dict(fixed["lm_head"], kernel=rows(head, kept, 1))
    return fixed | tables
