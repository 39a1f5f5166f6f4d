"""UniTok, the tokenizer of the Hybrid representation: pixels and text in one code (Sec. 4.3).

Picture -> ViTamin -> projection -> the nearest row of every sub-codebook -> projection back ->
tokens, from which ViTamin's mirror draws the picture and whose mean is compared with its text
(arXiv 2502.20321). What differs from the original: the text tower is SigLIP 2's, bidirectional and
pooled at the last position, over the words of this project's tokenizer, not CLIP's.

With a SigLIP2 tower as the encoder, `hybrid_lite`: the tower's hidden states as TA-Tok reads them,
one codebook, and a transformer that draws patches.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tarjax.models.attention import attend
from tarjax.models.layers import Array, LayerNorm, Linear, as_matrix, lecun, xavier
from tarjax.models.siglip2 import (
  NaFlexConfig,
  NaFlexTower,
  TextConfig,
  TextTower,
  VisionConfig,
  VisionTower,
  square_side,
  unit,
)
from tarjax.models.vitamin import GeGlu, Vitamin, VitaminConfig, VitaminDecoder
from tarjax.models.vq import nearest_code
from tarjax.sharding import named

PROJECTIONS = ("attention", "linear")
MOST_SCALE = math.log(100)


@dataclasses.dataclass(frozen=True)
class UniTokConfig:
  """Sizes; the defaults are UniTok's. Networks may be given as dicts.

  An encoder given as a dict is a SigLIP2 tower if it has a `patch`, otherwise a ViTamin. What is
  given as a dict takes `dtype` and `remat` from here unless it says otherwise.

  Attributes:
    text: the text tower; a dict takes `out` from `embed`.
    decoder: of a SigLIP2 tower; a ViTamin is its own. A dict takes widths and positions from the
      encoder.
    codes: of all sub-codebooks together.
    codebooks: how many there are, m; each has codes / m entries of code_width / m channels.
    projection: around the quantizer, see PROJECTIONS.
    embed: width of the embeddings that pictures and texts are compared by.
    beta: weight of the commitment in the quantizer's loss.
  """

  text: TextConfig
  encoder: VitaminConfig | VisionConfig = VitaminConfig()
  decoder: NaFlexConfig | None = None
  codes: int = 32_768
  codebooks: int = 8
  code_width: int = 64
  projection: str = "attention"
  embed: int = 768
  beta: float = 0.25
  dtype: str = "float32"
  remat: str = "none"

  def __post_init__(self):
    inherited: dict[str, Any] = {"dtype": self.dtype, "remat": self.remat}
    encoder: Any = self.encoder
    if not isinstance(encoder, VitaminConfig | VisionConfig):
      make: Any = VisionConfig if "patch" in encoder else VitaminConfig
      encoder = make(**{**inherited, **encoder})
      object.__setattr__(self, "encoder", encoder)
    if not isinstance(self.text, TextConfig):
      object.__setattr__(self, "text", TextConfig(**{**inherited, "out": self.embed, **self.text}))
    if isinstance(self.decoder, dict) or hasattr(self.decoder, "items"):
      sizes = {"channels": encoder.width, "width": encoder.width, "positions": encoder.grid**2}
      given: Any = self.decoder
      object.__setattr__(self, "decoder", NaFlexConfig(**{**inherited, **sizes, **given}))
    self._check(encoder)

  def _check(self, encoder):
    if isinstance(encoder, VisionConfig) == (self.decoder is None):
      raise ValueError("a SigLIP2 tower as the encoder needs a decoder, and a ViTamin is its own")
    if (self.text.out or self.text.width) != self.embed:
      raise ValueError(f"texts are embedded in {self.text.out} channels, pictures in {self.embed}")
    if self.codes % self.codebooks or self.code_width % self.codebooks:
      raise ValueError(
        f"codes={self.codes} and code_width={self.code_width} do not divide into "
        f"codebooks={self.codebooks}"
      )
    if self.projection not in PROJECTIONS:
      raise ValueError(f"projection={self.projection!r} is none of {PROJECTIONS}")

  @property
  def entries(self) -> int:
    """Of one sub-codebook."""
    return self.codes // self.codebooks

  @property
  def tokens(self) -> int:
    """Places of a picture; each has `codebooks` sub-codes."""
    return self.encoder.grid**2

  @property
  def drawn(self) -> int:
    """Side of what is drawn; a SigLIP2 tower does not see pixels beyond whole patches."""
    c = self.encoder
    return c.grid * c.patch if isinstance(c, VisionConfig) else c.image


class AttentionProjection(nn.Module):
  """Attention from one width to another, which changes it by heads: float32[b l d] -> [b l k].

  The narrower width is that of a head, and there are as many heads as fill the wider. On the way
  down heads are averaged, on the way up they lie beside one another (arXiv 2502.20321 Sec. 3.3).
  """

  width: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    d, out = x.shape[-1], self.width
    k, wide = min(d, out), max(d, out)
    if wide % k:
      raise ValueError(f"an attention projection from {d} to {out} channels needs a multiple")
    y, h = LayerNorm(1e-5, name="norm1")(x), wide // k

    def project(name, bias):
      axes: Any = ("act_embed", "heads", "head_dim")
      make: Any = {"bias": bias, "init": as_matrix(xavier, d), "name": name}
      return Linear("bld,dhk->blhk", (d, h, k), axes, **make)(y)

    y = attend(project("q", True), project("k", False), project("v", True))  # [b l h k]
    y = y.mean(2) if d > out else y.reshape(*y.shape[:2], wide)
    y = linear(out, out, "out")(y) + linear(d, out, "skip")(LayerNorm(1e-5, name="norm_skip")(x))
    return y + GeGlu(2 * out, name="mlp")(LayerNorm(1e-5, name="norm2")(y))


def linear(width: int, out: int, name: str | None = None, **options) -> Linear:
  """float[b l d] -> float[b l out], with a bias."""
  make: Any = {"bias": True, "init": xavier, "name": name}
  return Linear("bld,dk->blk", (width, out), ("embed", "act_embed"), **make, **options)


class SubCodebooks(nn.Module):
  """m codebooks of unit vectors, each for its own part of a vector (arXiv 2502.20321 Sec. 3.2)."""

  codes: int
  codebooks: int
  width: int

  def setup(self):
    shape = (self.codebooks, self.codes // self.codebooks, self.width // self.codebooks)
    init = named(small_cube, None, "codebook", "channels")
    self.table = self.param("codebooks", init, shape, jnp.float32)

  def vectors(self) -> Array:
    """float32[m e c], of unit length."""
    return unit(jnp.asarray(self.table))

  def lookup(self, ids: Array) -> Array:
    """int32[... m] -> float32[... m*c]."""
    return picked(self.vectors(), ids)

  def __call__(self, z: Array) -> dict[str, Array]:
    """Quantizes every part by the largest cosine, with a straight-through gradient.

    Args:
      z: float[b n m*c].

    Returns:
      indices int32[b n m]; quant float32[b n m*c], each part a unit vector, with z's gradient;
      codebook_loss and commit float32[], mean squares of the difference, over all parts alike.
    """
    table, m = self.vectors(), self.codebooks
    z = unit(z.reshape(*z.shape[:-1], m, -1))  # [b n m c]
    indices = jnp.stack([nearest_code(z[..., i, :], table[i])[0] for i in range(m)], -1)
    z = z.reshape(*z.shape[:-2], -1)
    code, still = picked(table, indices), jax.lax.stop_gradient
    return {
      "indices": indices,
      "quant": z + still(code - z),
      "codebook_loss": jnp.square(code - still(z)).mean(),
      "commit": jnp.square(still(code) - z).mean(),
    }


def picked(table: Array, ids: Array) -> Array:
  """Rows of float32[m e c] by int32[... m], beside one another: float32[... m*c]."""
  rows = table[jnp.arange(len(table)), ids]  # [... m c]
  return rows.reshape(*ids.shape[:-1], -1)


def small_cube(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
  """Uniform in +-c^-1/2 / 36, as UniTok: short rows turn far at first."""
  bound = shape[-1] ** -0.5 / 36
  return jax.random.uniform(key, shape, dtype, -bound, bound)


class PatchDecoder(nn.Module):
  """Tokens float[b n d], n a square -> float32[b y x 3]: a tower, and a linear map to patches."""

  config: NaFlexConfig
  patch: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    g, p = square_side(x.shape[1]), self.patch
    x = NaFlexTower(self.config, head=False, name="tower")(x)[0]
    shape, axes = (x.shape[-1], p, p, 3), ("embed", "kernel_y", "kernel_x", "channels")
    make: Any = {"bias": True, "init": as_matrix(lecun, x.shape[-1]), "name": "out"}
    x = Linear("bld,dpqc->blpqc", shape, axes, dtype=jnp.dtype(self.config.dtype), **make)(x)
    x = x.reshape(-1, g, g, p, p, 3).swapaxes(2, 3)  # [b y p x q c]
    return x.reshape(-1, g * p, g * p, 3).astype(jnp.float32)


class UniTok(nn.Module):
  """Pictures to sub-codes and back, and both sides of a contrastive loss. Call it to train."""

  config: UniTokConfig

  def setup(self):
    c, e = self.config, self.config.encoder
    if isinstance(e, VisionConfig):  # the hidden state that TA-Tok reads
      encoder: Any = VisionTower(e, blocks=e.depth - 1, post_norm=False, head=False)
      decoder: Any = PatchDecoder(c.decoder, e.patch) if c.decoder else None
    else:
      encoder, decoder = Vitamin(e), VitaminDecoder(e)
    project: Any = AttentionProjection
    if c.projection == "linear":
      self.quant_proj = linear(e.width, c.code_width)
      self.post_quant_proj = linear(c.code_width, e.width)
    else:
      self.quant_proj, self.post_quant_proj = project(c.code_width), project(e.width)
    self.encoder, self.decoder = encoder, decoder
    self.quantizer = SubCodebooks(c.codes, c.codebooks, c.code_width)
    self.norm = LayerNorm(1e-6)
    axes, make = ("embed", "act_embed"), {"bias": True, "init": xavier}
    self.head = Linear("bd,dk->bk", (e.width, c.embed), axes, **make)
    self.text = TextTower(c.text)
    self.logit_scale = self.param("logit_scale", nn.initializers.constant(math.log(1 / 0.07)), ())

  def project(self, images: Array, train: bool = False) -> Array:
    """float[b y x 3] in [-1, 1] -> what is quantized, float32[b n w]; `train` drops paths.

    Raises:
      ValueError: pictures of another size than the encoder's.
    """
    if isinstance(self.config.encoder, VisionConfig):
      x = self.encoder(images)[0]
    else:
      x = self.encoder(images, train)
    return self.quant_proj(x.astype(jnp.float32))

  def tokens(self, quant: Array) -> Array:
    """Quantized vectors float32[b n w] -> float32[b n d]."""
    return self.post_quant_proj(quant)

  def draw(self, tokens: Array, train: bool = False) -> Array:
    """float32[b n d] -> float32[b y x 3], about [-1, 1] and not clipped."""
    if isinstance(self.config.encoder, VisionConfig):
      return self.decoder(tokens)
    return self.decoder(tokens, train)

  def embed_tokens(self, tokens: Array) -> Array:
    """A picture's tokens float32[b n d] -> its embedding float32[b k], unit length."""
    return unit(self.head(self.norm(tokens.mean(1))))

  def embed_text(self, ids: Array) -> Array:
    """int32[b l] -> float32[b k], unit length."""
    return unit(self.text(ids)[1])

  def scale(self) -> Array:
    """What multiplies cosines, float32[]: learned, 100 at most."""
    return jnp.exp(at_most(jnp.asarray(self.logit_scale), MOST_SCALE))

  def encode(self, images: Array) -> Array:
    """float[b y x 3] in [-1, 1] -> sub-codes int32[b n m]."""
    return self.quantizer(self.project(images))["indices"]

  def embed_codes(self, ids: Array) -> Array:
    """Sub-codes int32[b n m] -> tokens float32[b n d].

    Raises:
      ValueError: another number of places or of sub-codes.
    """
    c = self.config
    if ids.shape[1:] != (c.tokens, c.codebooks):
      raise ValueError(f"codes have shape {ids.shape}; UniTok's are [b {c.tokens} {c.codebooks}]")
    return self.tokens(self.quantizer.lookup(ids))

  def decode_indices(self, ids: Array) -> Array:
    """Sub-codes int32[b n m] -> float32[b y x 3], about [-1, 1]; errors as `embed_codes`."""
    return self.draw(self.embed_codes(ids))

  def __call__(self, images: Array, ids: Array, train: bool = False) -> dict[str, Array]:
    """The training forward of pictures and their texts.

    Args:
      images: float[b y x 3] in [-1, 1].
      ids: int32[b l].
      train: drops paths, with the rng "dropout".

    Returns:
      The dict of `SubCodebooks`, with quant as it is before the projection back; tokens
      float32[b n d]; rec float32[b y x 3]; image and text float32[b k], unit length; scale.
    """
    out = self.read(images, ids, train)
    return out | {"rec": self.draw(out["tokens"], train)}

  def read(self, images: Array, ids: Array, train: bool = False) -> dict[str, Array]:
    """`__call__` without the picture that is drawn."""
    out = self.quantizer(self.project(images, train))
    tokens = self.tokens(out["quant"])
    both = {"image": self.embed_tokens(tokens), "text": self.embed_text(ids)}
    return out | both | {"tokens": tokens, "scale": self.scale()}


@jax.custom_vjp
def at_most(x: Array, most: float) -> Array:
  """min(x, most), whose gradient leads back from above: a parameter that stops there and can go."""
  return jnp.minimum(x, most)


def _at_most_gradient(over, g):
  return jnp.where(over & (g < 0), 0, g), None


at_most.defvjp(lambda x, most: (jnp.minimum(x, most), x >= most), _at_most_gradient)
