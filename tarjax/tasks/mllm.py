"""The language model: text only, Tar pretraining on visual and text tokens, SFT (paper Sec. 3.3).

Next-token cross-entropy over packed rows: the sum of token losses over the number of labelled
tokens of the global batch. What a picture is to it, `tarjax.representations` says.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarjax import losses
from tarjax.config import UserError
from tarjax.models import tar
from tarjax.models.qwen2 import Qwen2, Qwen2Config, head_table
from tarjax.models.ta_tok import TaTok, TaTokConfig
from tarjax.representations import make_representation
from tarjax.tasks.ta_tok import merge


class Task:
  """Batches are `packed`: tokens, labels, segments, positions int32[b l], and what is embedded.

  `config.words` counts the rows in use: text_rows (length of the text tokenizer) and codes (visual
  words, 0 for a text model). `config.widen` starts this run from a text model: llm and ta_tok
  (checkpoint specs), embed_init, and scale, which the codebook is divided by to have rows like the
  text's; `config.ta_tok` is then the tokenizer's network. Without it, a run starts from config.init
  or from scratch, and `config.ta_tok_from` may name the run whose words the data must be. With
  `config.pre_align` only the rows of what is not text, and what the representation adds, are
  trained (the pre-alignment of Table 3).

  `config.representation` is "ta_tok" unless it says otherwise. "vqvae" and "janus" have
  words.tokens codes in a picture, `vqvae_from` in the place of `ta_tok_from`, and rows that start
  by embed_init "random" or "mean"; "janus" has in `config.siglip2` the network that reads. "hybrid"
  has one visual word, `unitok_from`, and in `config.depth_head` the network that says the sub-codes
  of the places of pictures; a place counts as one token, with the mean loss of its sub-codes.
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
    ta_tok = {"ta_tok": TaTok(TaTokConfig(**config.ta_tok))} if "ta_tok" in config else {}
    self.representation = make_representation(config, ta_tok)
    if config.get("pre_align", False) and config.optim.weight_decay:
      raise ValueError("config.pre_align trains new rows only: set config.optim.weight_decay to 0")

  def init(self, rng):
    params = self.model.init(rng, jnp.zeros((1, 8), jnp.int32))["params"]
    return params | self.representation.init(rng)

  def init_frozen(self, rng):
    return self.representation.init_frozen(rng)

  def start(self, params, frozen, load, workdir, batch):
    """Fills the tables of a text model up with visual words (paper Eq. 2: {E, C} = {E, E W})."""
    widen, words = self.config.get("widen"), self.config.words
    if not widen:
      return params, frozen
    codebook = None
    if widen.embed_init == "codebook":
      codebook = np.asarray(self._codebook(load, widen.ta_tok)) / widen.scale
    wide = tar.widen(
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
    return params | wide, frozen

  def _codebook(self, load, spec):
    """What the representation's words may start from, of the tokenizer that `spec` names."""
    if not self.representation.scales:
      name = self.representation.layout.name
      raise UserError(f"{name} has no rows for config.widen.embed_init='codebook': choose random")
    whole = merge(load(spec), load(spec, frozen=True))
    whole = {"quantizer": jax.tree.map(np.asarray, whole["quantizer"])}
    return self.representation.embed_init({"ta_tok": whole})

  def static(self, step):
    return {}

  def loss(self, params, frozen, batch, rng, *, train):
    """Cross-entropy over labelled tokens; text and visual words are also logged apart."""
    if self.config.get("pre_align", False):
      params = self._only_new(params)
    inputs = self.representation.inputs(self.model, {"mllm": params} | frozen, batch)
    packed = {name: batch[name] for name in ("positions", "segments")}
    hidden, _ = self.model.apply({"params": params}, **inputs, **packed)
    # aligned with what comes next; after the last position, nothing does
    labels = jnp.pad(batch["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=losses.IGNORED)
    image = labels >= self.first_image
    more = None
    if self.representation.layout.books:
      drawn = labels == self.first_image + tar.MARKS
      more = self._places(params, hidden, batch["subcodes"], drawn)
      labels = jnp.where(drawn, losses.IGNORED, labels)
    total, count, parts = losses.chunked_cross_entropy(
      hidden,
      head_table(self.net, params),
      labels,
      self.config.loss_chunk,
      self.used,  # padding rows of the table are no words
      {"text": ~image, "image": image},
    )
    if more:
      total, count = total + more[0], count + more[1]
      parts["image"] = tuple(a + b for a, b in zip(parts["image"], more, strict=True))
    metrics: dict[str, Any] = {f"loss_{k}": s / jnp.maximum(n, 1) for k, (s, n) in parts.items()}
    metrics["filled"] = (batch["segments"] > 0).mean()
    metrics["counts"] = {"loss": count} | {f"loss_{k}": n for k, (_, n) in parts.items()}
    return total / jnp.maximum(count, 1), metrics

  def _places(self, params, hidden, subcodes, drawn):
    """(sum of losses, number) of the places that are drawn."""
    hybrid: Any = self.representation
    return hybrid.place_loss({"mllm": params}, hidden, subcodes, drawn, self.config.loss_chunk)

  def _only_new(self, params):
    """The same parameters: only rows after the text's and what pictures add have a gradient."""
    fixed = jax.lax.stop_gradient(params)
    added = {name: params[name] for name in self.representation.added}

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
    return fixed | tables | added
