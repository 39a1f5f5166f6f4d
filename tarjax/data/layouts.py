"""How the pictures of each representation stand in a record and in a row of tokens (Sec. 4.3).

  name    in a record         a picture that is shown   a picture that is drawn
  ta_tok  codes: {s: [n_s]}   <I..>*n_s                 <im_start><S{s-1}><I..>*n_s<im_end>
  vqvae   vq: [n]             <I..>*n                   <im_start><I..>*n<im_end>
  janus   images, and vq: [n] <|image_pad|>*places      <im_start><I..>*n<im_end>
  hybrid  unitok: [n m]       <I0>*n                    <im_start><I0>*n<im_end>

`config.representation` is the name (ta_tok unless it says otherwise); n is config.words.tokens, the
places are the patches of config.siglip2, and m sub-codes stand behind each <I0> of hybrid.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tarjax.data import transforms

NAMES = ("ta_tok", "vqvae", "janus", "hybrid")


class Picture(NamedTuple):
  """What stands for a picture among tokens: codes int[n], or how many embedded places."""

  shown: Any
  drawn: Any  # None: it can only be shown
  scale: int | None  # of the <S> before drawn codes


class Layout(NamedTuple):
  """The layout of one representation.

  Attributes:
    name: of the representation.
    field: of a record, that holds its pictures' codes.
    scaled: whether codes are at several scales.
    tokens: codes of a picture where they are not.
    places: that an embedded picture takes; 0: codes are shown.
    side: of an embedded picture, in pixels.
    books: sub-codes behind each token of a picture; 0: the token is the code.
  """

  name: str
  field: str
  scaled: bool = False
  tokens: int = 0
  places: int = 0
  side: int = 0
  books: int = 0

  @property
  def carries(self) -> bool:
    """Whether rows carry more than tokens, see `carried`."""
    return bool(self.places or self.books)

  def stands(self, shown: Any) -> Any:
    """What `tokens.image_ids` takes of what is shown: codes, or the number of embedded places."""
    if self.places:
      return self.places
    return np.zeros(len(shown), np.int32) if self.books else shown

  def pictures(self, record: Mapping[str, Any], scales: int | Sequence[int]) -> list[Picture]:
    """The pictures of a record, in order; `scales` is one scale, or one per picture.

    Raises:
      ValueError: a scale without codes, codes that are missing or of another number.
    """
    codes = record.get(self.field)
    if self.scaled:
      codes = codes or ()
      each = [scales] * len(codes) if isinstance(scales, int) else list(scales)
      found = [at_scale(c, s) for c, s in zip(codes, each, strict=True)]
      return [Picture(c, c, s) for c, s in zip(found, each, strict=True)]
    pixels = record.get("images") or ()
    if codes is None and self.places:
      return [Picture(self.places, None, None) for _ in pixels]
    if codes is None:
      if pixels or record.get("codes"):
        raise ValueError(f"its pictures have no {self.field!r}, the codes of {self.name}")
      return []
    if wrong := [len(c) for c in codes if len(c) != self.tokens]:
      raise ValueError(f"{wrong[0]} codes of a picture, but config.words.tokens={self.tokens}")
    if self.books:
      if wrong := [c.shape for c in codes if c.shape[1:] != (self.books,)]:
        raise ValueError(f"codes have shape {wrong[0]}, a place has {self.books} sub-codes")
      codes = [self.stands(c) for c in codes]
    shown = codes if not self.places else [self.places if pixels else None] * len(codes)
    return [Picture(a, b, None) for a, b in zip(shown, codes, strict=True)]

  def carried(
    self, tokens: np.ndarray, vocab: Any, shown: Sequence[np.ndarray]
  ) -> dict[str, np.ndarray]:
    """What a row of tokens int32[l] carries beside them, where they do not say it all.

    Args:
      tokens: the row.
      vocab: a `tokens.Vocab`.
      shown: in the order of their places, embedded pictures uint8[y x 3] of any size, or the
        sub-codes int[n m] of pictures; the last ones have no places if the row was truncated.

    Returns:
      "pictures" uint8[l // places, side, side, 3], and "places" int32[l]: k > 0 takes the k-th
      vector of all pictures of the row. Or "subcodes" int32[l m], -1 where no picture is.
    """
    if not self.carries:
      return {}
    here = tokens == (vocab.place if self.places else vocab.image0)
    if self.books:
      subcodes = np.full((len(tokens), self.books), -1, np.int32)
      if here.any():
        subcodes[here] = np.concatenate(shown)[: here.sum()]
      return {"subcodes": subcodes}
    pictures = np.zeros((len(tokens) // self.places, self.side, self.side, 3), np.uint8)
    for i in range(here.sum() // self.places):
      pictures[i] = transforms.squash(shown[i], self.side)
    return {"pictures": pictures, "places": np.where(here, np.cumsum(here), 0).astype(np.int32)}

  def check(self, config, codes: int, length: int) -> None:
    """Raises ValueError unless config.data is of this layout, where it has no scales.

    Args:
      codes: visual words of the tokenizer.
      length: tokens of a row.
    """
    if self.scaled:
      return
    if codes != config.words.codes:
      raise ValueError(
        f"the tokenizer of config.data has {codes} visual words, config.words.codes is "
        f"{config.words.codes}: make one by python -m tarjax.data.tokenizer DIR OUT CODES"
      )
    if "scales" in config.data:
      raise ValueError(f"config.data.scales: pictures of {self.name} have no scales")
    if self.places > length:
      raise ValueError(f"config.data.length={length} holds no picture, which takes {self.places}")


SCALED = Layout("ta_tok", "codes", scaled=True)


def layout_of(config) -> Layout:
  """The layout that a run's config names.

  Raises:
    ValueError: an unknown name, or sizes that are missing.
  """
  name = config.get("representation", "ta_tok")
  if name not in NAMES:
    raise ValueError(f"config.representation={name!r} is none of {', '.join(NAMES)}")
  if name == "ta_tok":
    return SCALED
  count = config.words.get("tokens", 0)
  if count < 1:
    raise ValueError(f"config.words.tokens is needed: how many codes of {name} a picture has")
  if name == "vqvae":
    return Layout(name, "vq", tokens=count)
  if name == "hybrid":
    if "depth_head" not in config:
      raise ValueError("config.depth_head is needed: the network that says hybrid's sub-codes")
    return Layout(name, "unitok", tokens=count, books=config.depth_head.codebooks)
  if "siglip2" not in config:
    raise ValueError("config.siglip2 is needed: the network by which janus reads pictures")
  side = config.siglip2.image
  return Layout(name, "vq", tokens=count, places=(side // config.siglip2.patch) ** 2, side=side)


def at_scale(codes: Mapping[int, Any], scale: int):
  if scale not in codes:
    raise ValueError(f"an image has codes at scales {sorted(codes)}, not at {scale}")
  return codes[scale]
