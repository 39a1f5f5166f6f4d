"""TA-Tok, the text-aligned tokenizer (paper Sec. 3.1, Eq. 1-3).

Image -> SigLIP2 features -> pooled by 1, 2 or 3 -> task layer -> bottleneck -> SimVQ code ->
bottleneck -> NaFlex decoder -> task layers -> reconstructed SigLIP2 features ("rec"), which the
de-tokenizers are conditioned on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tarjax.models.layers import Array, Linear, lecun
from tarjax.models.siglip2 import NaFlexConfig, NaFlexTower, VisionConfig, VisionTower, square_side
from tarjax.models.vq import SimVq, TableVq

SCALES = (1, 2, 3)
QUANTIZERS = {"llm": SimVq, "table": TableVq}


@dataclass(frozen=True)
class TaTokConfig:
  """Tokenizer; `encoder` and `decoder` may be given as dicts.

  A decoder given as a dict takes `channels` and `width` from the rest, and both take `dtype` and
  `remat` from here, unless they say otherwise. `select_layer` indexes the encoder's hidden
  states, embeddings first: -2 is the input of the last block. A negative `temperature` is
  learned. `codebook` is "llm" (C = E W, of a language model's rows E) or, for comparison, "table":
  trained itself, from random rows.
  """

  encoder: VisionConfig
  decoder: NaFlexConfig
  codes: int
  width: int
  l2_normalized: bool = False
  stochastic: bool = False
  temperature: float = 0.03
  select_layer: int = -2
  codebook: str = "llm"
  dtype: str = "float32"
  remat: str = "none"

  def __post_init__(self):
    inherited: dict[str, Any] = {"dtype": self.dtype, "remat": self.remat}
    encoder: Any = self.encoder
    if not isinstance(encoder, VisionConfig):
      encoder = VisionConfig(**{**inherited, **encoder})
      object.__setattr__(self, "encoder", encoder)
    if not isinstance(self.decoder, NaFlexConfig):
      inherited |= {"channels": self.width, "width": encoder.width}
      object.__setattr__(self, "decoder", NaFlexConfig(**{**inherited, **self.decoder}))
    if (self.decoder.channels, self.decoder.width) != (self.width, encoder.width):
      raise ValueError(
        f"the decoder maps {self.decoder.channels} to {self.decoder.width} channels, not the "
        f"bottleneck's {self.width} to the encoder's {encoder.width}"
      )
    if not 1 <= self.blocks <= encoder.depth:
      raise ValueError(f"select_layer {self.select_layer} is no block of {encoder.depth}")
    if self.stochastic and not self.l2_normalized:
      raise ValueError("a stochastic quantiser needs l2_normalized")
    if self.codebook not in QUANTIZERS:
      raise ValueError(f"codebook {self.codebook!r} is none of {list(QUANTIZERS)}")

  @property
  def blocks(self) -> int:
    """How many encoder blocks are run."""
    last = self.encoder.depth + 1
    return self.select_layer + (last if self.select_layer < 0 else 0)

  def tokens(self, scale: int) -> int:
    """Codes per image at a pool scale."""
    return (self.encoder.grid // scale) ** 2


def pool(x: Array, scale: int) -> Array:
  """Average pooling without padding: float[b l d] -> float[b l' d], l' = floor(sqrt(l) / scale)^2.

  Remainder rows and columns at the bottom and right are dropped (27 -> 13 at scale 2), as in the
  reference code.

  Raises:
    ValueError: a length that is no square, or a scale below 1 or above the grid's side.
  """
  side, d = square_side(x.shape[1]), x.shape[-1]
  if not 1 <= scale <= side:
    raise ValueError(f"pool scale {scale} does not fit a grid of {side} x {side}")
  if scale == 1:
    return x
  g = side // scale
  x = x.reshape(-1, side, side, d)[:, : g * scale, : g * scale]
  return x.reshape(-1, g, scale, g, scale, d).mean((2, 4)).reshape(-1, g * g, d)


class TaTok(nn.Module):
  """Images to codes and codes to features; `__call__` is the whole forward pass."""

  cfg: TaTokConfig

  def setup(self):
    c, d, w = self.cfg, self.cfg.encoder.width, self.cfg.width
    make: Any = {"bias": True, "init": lecun, "dtype": jnp.dtype(c.dtype)}
    axes = ("embed", "act_embed")
    self.encoder = VisionTower(c.encoder, blocks=c.blocks, post_norm=False, head=False)
    self.encode_task = Linear("bld,dk->blk", (d, d), axes, **make)
    self.in_linear = Linear("bld,dk->blk", (d, w), axes, **make)
    quantizer = QUANTIZERS[c.codebook]
    self.quantizer = quantizer(c.codes, w, c.l2_normalized, c.stochastic, c.temperature)
    self.out_linear = Linear("bld,dk->blk", (w, w), axes, **make)
    self.decoder = NaFlexTower(c.decoder, head=False)
    self.decode_task1 = Linear("bld,dk->blk", (d, d), axes, **make)
    self.decode_task2 = Linear("bld,dk->blk", (d, d), axes, **make)

  def features(self, images: Array) -> Array:
    """float[b y x 3] in [-1, 1], any size -> float32[b l d], the encoder's selected hidden state.

    Another size is resized to the encoder's square: bilinear, antialiased, aspect ratio not kept.
    """
    side = self.cfg.encoder.image
    if images.shape[1:3] != (side, side):
      images = jax.image.resize(images, (len(images), side, side, images.shape[-1]), "linear")
    return self.encoder(images)[0].astype(jnp.float32)

  def quantize(
    self, features: Array, scale: int, rng: Array | None = None, codebook: Array | None = None
  ) -> dict[str, Array]:
    """Pools float[b l d] by `scale` and quantises; returns the dict of `SimVq.__call__`."""
    return self.quantizer(self.project(features, scale), rng, codebook)

  def project(self, features: Array, scale: int) -> Array:
    """Pools float[b l d] by `scale` -> what is quantised, float[b l' w]."""
    return self.in_linear(nn.tanh(self.encode_task(pool(features, scale))))

  def decode(self, quant: Array) -> Array:
    """float[b n w] codes, n a square -> reconstructed features float32[b n d]."""
    x = self.decoder(self.out_linear(quant))[0]
    return self.decode_task2(nn.tanh(self.decode_task1(x))).astype(jnp.float32)

  def decode_indices(self, ids: Array, codebook: Array | None = None) -> Array:
    """int32[b n] -> reconstructed features float32[b n d]; `codebook` is a result of `codebook()`.

    Raises:
      ValueError: n is no square, or (when `ids` is a numpy array) an id outside the codebook.
    """
    if isinstance(ids, np.ndarray) and not (0 <= ids.min() and ids.max() < self.cfg.codes):
      raise ValueError(f"code {ids.min()} or {ids.max()} is outside 0..{self.cfg.codes - 1}")
    return self.decode(self.quantizer.lookup(ids, codebook))

  def codebook(self) -> Array:
    """The effective codebook (C = E W + b), float32[e w]; compute it once when W is fixed."""
    return self.quantizer.codebook()

  def encode(self, images: Array, scale: int = 1, codebook: Array | None = None) -> Array:
    """float[b y x 3] in [-1, 1] -> codes int32[b n]."""
    return self.quantize(self.features(images), scale, codebook=codebook)["indices"]

  def encode_all(
    self, images: Array, codebook: Array | None = None, scales: Sequence[int] = SCALES
  ) -> dict[int, Array]:
    """Codes at several scales from one encoder pass: {scale: int32[b n]}."""
    features = self.features(images)
    table = self.codebook() if codebook is None else codebook
    return {s: self.quantize(features, s, codebook=table)["indices"] for s in scales}

  def __call__(self, images: Array, scale: int = 1, rng: Array | None = None) -> dict[str, Array]:
    """The training forward: the dict of `quantize` and "rec" float32[b n d]."""
    out = self.quantize(self.features(images), scale, rng)
    return out | {"rec": self.decode(out["quant"])}
