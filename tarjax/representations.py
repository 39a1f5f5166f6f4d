"""What a picture is to the language model: representations behind one interface (Sec. 4.3).

  ta_tok  words of TA-Tok at three scales, read and drawn; AR-DTok or Dif-DTok paints them
  vqvae   codes of the VQVAE as words, read and drawn; its decoder paints them
  janus   read as features of a frozen SigLIP2 through an MLP, drawn as codes of the VQVAE
  hybrid  several sub-codes of UniTok at every place, read and drawn; its decoder paints them

A representation holds networks and no parameters: those come as `trees`, {component: parameters},
with "mllm" among them. How pictures stand in records and rows is its `layout`, see data.layouts.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from tarjax import losses, sampling
from tarjax.data.layouts import Layout, layout_of
from tarjax.models.depth_head import DepthHead, DepthHeadConfig
from tarjax.models.janus import Reader, insert
from tarjax.models.siglip2 import VisionConfig
from tarjax.tasks.inputs import SCALES, pixels

Array = jax.Array
Trees = Mapping[str, Any]


class Representation(Protocol):
  """The four answer to this alike; an encoder's `images` are uint8[b side side 3].

  Attributes:
    layout: of records and rows.
    understanding: "ids" or "embeddings", what `encode` gives.
    scales: pool scales to choose from; () is one resolution.
    num_ids: words that pictures are drawn in.
    side: of the pictures that are encoded, in pixels.
    added: names of what `init` makes.
  """

  layout: Layout
  understanding: str
  scales: tuple[int, ...]
  num_ids: int
  side: int
  added: tuple[str, ...]

  def tokens_per_image(self, scale: int | None) -> int:
    """Words of a picture that is drawn; scale is None where there are no scales."""
    ...

  def encode(self, trees: Trees, images: Array, scale: int | None) -> Array:
    """Pictures as the language model reads them: ids int32[b n] or embeddings float[b n d].

    Where places have sub-codes, as in the layout, ids are int32[b n m] here and in `decode`.
    """
    ...

  def embed_init(self, trees: Trees) -> Array | None:
    """Rows float32[num_ids d] that the words may start from; None: the representation has none."""
    ...

  def decode(self, trees: Trees, ids: Array, seeds: Array, **settings) -> Array:
    """Words int32[b n] -> pictures float32[b y x 3] in [-1, 1]; seeds uint32[b]."""
    ...

  def inputs(self, llm: Any, trees: Trees, batch: Mapping[str, Array]) -> dict[str, Array]:
    """A packed batch as Qwen2 takes it: {"ids": int32[b l]} or {"embeds": float[b l d]}."""
    ...

  def init(self, rng) -> dict[str, Any]:
    """Boxed parameters that are trained with the language model and lie beside its own."""
    ...

  def init_frozen(self, rng) -> dict[str, Any]:
    """The same, of what it reads and does not train."""
    ...


class Words:
  """What representations by ids have in common: nothing of their own is in the language model."""

  understanding: str = "ids"
  added: tuple[str, ...] = ()

  def inputs(self, llm, trees, batch):
    return {"ids": batch["tokens"]}

  def embed_init(self, trees) -> Array | None:
    return None

  def init(self, rng) -> dict[str, Any]:
    return {}

  def init_frozen(self, rng) -> dict[str, Any]:
    return {}


class TaTokWords(Words):
  """Words whose rows may start as the codebook; `trees["codebook"]`, if there, is that."""

  scales: tuple[int, ...] = SCALES

  def __init__(self, config, networks: Mapping[str, Any]):
    self.layout = layout_of(config)
    names = ("ta_tok", "ar_dtok", "vqvae")
    self.ta_tok: Any
    self.ar_dtok: Any
    self.ta_tok, self.ar_dtok, self.vqvae = (networks.get(name) for name in names)
    net = self.ta_tok.cfg if self.ta_tok else None
    self.num_ids, self.side = (net.codes, net.encoder.image) if net else (0, 0)
    self.condition = jax.jit(self._condition)
    self._paint = jax.jit(lambda p, ids: paint(self.vqvae, p, ids))

  def tokens_per_image(self, scale):
    return self.ta_tok.cfg.tokens(scale)

  def encode(self, trees, images, scale):
    own, book = {"params": trees["ta_tok"]}, trees.get("codebook")
    return self.ta_tok.apply(own, pixels(images), scale, book, method="encode")

  def embed_init(self, trees):
    """The codebook C = E W + b (Eq. 2); only the quantizer of trees["ta_tok"] is read."""
    quantizer = {"quantizer": trees["ta_tok"]["quantizer"]}
    return self.ta_tok.apply({"params": quantizer}, method="codebook")

  def _condition(self, trees, ids):
    """What a de-tokenizer reads of words int32[b n]: features float32[b n d]."""
    own, book = {"params": trees["ta_tok"]}, trees.get("codebook")
    return self.ta_tok.apply(own, ids, book, method="decode_indices")

  def decode(self, trees, ids, seeds, **settings):
    """By AR-DTok; settings are those of `sampling.generate_codes`."""
    cond = self.condition(trees, ids)
    codes = sampling.generate_codes(self.ar_dtok, trees["ar_dtok"], cond, seeds, **settings)
    return self._paint(trees["vqvae"], codes)


class VqVaeWords(Words):
  """The VQVAE's codes, both ways; their rows start at random."""

  scales: tuple[int, ...] = ()

  def __init__(self, config, networks: Mapping[str, Any]):
    self.layout = layout_of(config)
    self.vqvae: Any = networks.get("vqvae")
    self.num_ids, self.side = config.words.codes, 0
    if self.vqvae:
      self.side = drawn_side(self.layout.tokens, self.vqvae)
    self._paint = jax.jit(lambda p, ids: paint(self.vqvae, p, ids))

  def tokens_per_image(self, scale):
    return self.layout.tokens

  def encode(self, trees, images, scale):
    own = {"params": trees["vqvae"]}
    z = self.vqvae.apply(own, pixels(images), method="encode")
    return self.vqvae.apply(own, z, method="quantize")["indices"]

  def decode(self, trees, ids, seeds, **settings):
    """By the VQVAE's decoder, which neither draws at random nor has settings."""
    if settings:
      raise ValueError(f"the VQVAE's decoder has no settings, so no {', '.join(settings)}")
    return self._paint(trees["vqvae"], ids)


class Janus(VqVaeWords):
  """Embedded pictures in, the VQVAE's codes out."""

  understanding: str = "embeddings"
  added: tuple[str, ...] = ("projector",)

  def __init__(self, config, networks: Mapping[str, Any]):
    super().__init__(config, networks)
    dtype = config.model.get("dtype", "float32")
    net = VisionConfig(**{"dtype": dtype, **config.siglip2})
    self.side = net.image
    self.reader: Any = Reader(net, config.model.width, dtype)

  def encode(self, trees, images, scale):
    own = {"tower": trees["siglip2"], "projector": trees["mllm"]["projector"]}
    return self.reader.apply({"params": own}, pixels(images))

  def inputs(self, llm, trees, batch):
    """Vectors of the pictures in their places, rows of the table in the others."""
    embeds = llm.apply({"params": trees["mllm"]}, batch["tokens"], method="embed")
    pictures = batch["pictures"]  # [b p y x 3]
    read = self.encode(trees, pictures.reshape(-1, *pictures.shape[2:]), None)
    read = read.reshape(len(pictures), -1, read.shape[-1])  # [b p*n d]
    return {"embeds": insert(embeds, batch["places"], read)}

  def init(self, rng):
    return {"projector": self._init(rng)["projector"]}

  def init_frozen(self, rng):
    return {"siglip2": self._init(rng)["tower"]}

  def _init(self, rng):
    return self.reader.init(rng, jnp.zeros((1, self.side, self.side, 3)))["params"]


class Hybrid(Words):
  """UniTok's sub-codes, both ways. Ids are int32[b n m]; the token of every place is <I0>."""

  scales: tuple[int, ...] = ()
  added: tuple[str, ...] = ("depth_head",)

  def __init__(self, config, networks: Mapping[str, Any]):
    self.layout = layout_of(config)
    self.unitok: Any = networks.get("unitok")
    self.num_ids = config.words.codes
    self.side = self.unitok.config.encoder.image if self.unitok else 0
    sizes: dict[str, Any] = {"dtype": config.model.get("dtype", "float32")} | dict(
      config.depth_head
    )
    self.head: Any = DepthHead(DepthHeadConfig(width=config.model.width, **sizes))
    own = {"method": "decode_indices"}
    self._paint = jax.jit(lambda p, ids: self.unitok.apply({"params": p}, ids, **own))

  def tokens_per_image(self, scale):
    return self.layout.tokens

  def encode(self, trees, images, scale):
    return self.unitok.apply({"params": trees["unitok"]}, pixels(images), method="encode")

  def decode(self, trees, ids, seeds, **settings):
    """By UniTok's decoder, which neither draws at random nor has settings."""
    if settings:
      raise ValueError(f"UniTok's decoder has no settings, so no {', '.join(settings)}")
    return self._paint(trees["unitok"], ids)

  def inputs(self, llm, trees, batch):
    """What sub-codes are together in the places of pictures, rows of the table in the others."""
    embeds = llm.apply({"params": trees["mllm"]}, batch["tokens"], method="embed")
    own, codes = {"params": trees["mllm"]["depth_head"]}, batch["subcodes"]
    read = self.head.apply(own, codes, method="embed").astype(embeds.dtype)
    return {"embeds": jnp.where(codes[..., :1] >= 0, read, embeds)}

  def place_loss(self, trees, hidden, subcodes, drawn, chunk: int) -> tuple[Array, Array]:
    """Cross-entropy of drawn places, each the mean of its sub-codes': its sum and their number.

    Args:
      hidden: float[b l d], before each place.
      subcodes: int32[b l m], of the place itself.
      drawn: bool[b l], whether what comes next is a place that is drawn.
      chunk: places whose logits exist at a time.
    """
    params, pad = trees["mllm"]["depth_head"], -hidden.shape[1] % chunk
    coming = jnp.pad(subcodes[:, 1:], ((0, 0), (0, 1), (0, 0)), constant_values=losses.IGNORED)
    targets = jnp.where(drawn[..., None], coming, losses.IGNORED)

    def split(x, fill):  # [b l ...] -> [l/chunk b chunk ...]
      x = jnp.pad(x, ((0, 0), (0, pad), (0, 0)), constant_values=fill)
      return x.reshape(len(x), -1, chunk, x.shape[-1]).swapaxes(0, 1)

    @jax.checkpoint
    def part(xs):
      logits = self.head.apply({"params": params}, *xs)
      return losses.token_losses(logits, xs[1]).mean(-1).sum()

    sums = jax.lax.map(part, (split(hidden, 0), split(targets, losses.IGNORED)))
    return sums.sum(), drawn.astype(jnp.float32).sum()

  def init(self, rng):
    width, m = self.head.config.width, self.layout.books
    hidden, codes = jnp.zeros((1, 1, width)), jnp.zeros((1, 1, m), jnp.int32)
    return {"depth_head": self.head.init(rng, hidden, codes)["params"]}


REPRESENTATIONS = {"ta_tok": TaTokWords, "vqvae": VqVaeWords, "janus": Janus, "hybrid": Hybrid}


def make_representation(config, networks: Mapping[str, Any]) -> Representation:
  """The representation that an MLLM's config names.

  Args:
    config: representation, words and siglip2 of it are read.
    networks: by component, those that are there; without its own, a representation neither encodes
      nor decodes.

  Raises:
    ValueError: an unknown name, or sizes that are missing or do not fit.
  """
  return REPRESENTATIONS[layout_of(config).name](config, networks)


def paint(vqvae, params, ids):
  """Codes int32[b n] of the VQVAE -> float32[b y x 3]."""
  return vqvae.apply({"params": params}, ids, method="decode_indices")


def drawn_side(tokens: int, vqvae) -> int:
  """Pixels a side of a picture of so many codes; a ValueError if they form no square."""
  grid = math.isqrt(tokens)
  if grid * grid != tokens:
    raise ValueError(f"config.words.tokens={tokens} is not the number of codes of a square picture")
  return grid * vqvae.config.factor
