"""What a batch holds: config.data, and the formats, each of which makes a row from its records.

A batch is a dict of arrays with a leading batch axis; config.data.format says which:

  images  "image" uint8[b y x 3]
  pairs   "image" uint8[b y x 3], "text" int32[b t], padded with <|endoftext|>, and "regions"
          int32[b l k] where the records say what stands in each part of the picture
  codes   "codes1" int32[b n1], "codes2" int32[b n2], "codes3" int32[b n3], "vq" int32[b t]
  classes "label" int32[b], "vq" int32[b t]
  latents "codes1", "codes2", "codes3" as above, "latent" float32[b y x c]
  packed  "tokens", "labels", "segments", "positions" int32[b l]: several examples a row;
          labels[i] belongs to token i (-100: none), segments count from 1 and are 0 in padding.
          Where pictures are embedded (janus, see data.layouts) also "pictures" uint8[b p y x 3],
          of which a row has p at most, and "places" int32[b l], where their vectors go; where
          places have sub-codes (hybrid) "subcodes" int32[b l m], -1 in other places

A format is made of (data, record, config, split, fields): `record` is the mixture, `fields` what
the stage can learn from, {name: tarjax.tasks.inputs.Field}. What it makes of one record is its
`use`; a record that this refuses (ValueError) is damaged, whatever its source thinks.
"""

import abc
import bisect
import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tarjax.config import OPTIONAL_DATA
from tarjax.data import sources, tokens, transforms
from tarjax.data.layouts import layout_of
from tarjax.data.mixture import draw
from tarjax.data.packing import Example, Packer

Row = dict[str, np.ndarray]
Records = Callable[..., Any]  # (index) -> record, or (index, use) -> use(record, index)


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """config.data; what is not used by a format may be left out."""

  sources: Sequence[Mapping[str, Any]]  # {"name", "weight", arguments of the source}
  format: str  # images, pairs, codes, classes, latents, packed
  tokenizer: str = ""  # folder, relative to the workdir
  size: int = 0  # images: side in pixels; 0 takes them as they are
  resize: str = "squash"  # or "crop": random in training, central in tests
  zoom: float = 1.0  # crop, in training: of pictures up to so many times the size
  flip: bool = False  # crop, in training: every second picture is mirrored
  text_length: int = 64  # pairs
  length: int = 2048  # packed: tokens per row
  window: int = 4096  # packed: examples that are packed together
  rows: int = 0  # packed: rows per window, 0 chooses
  scales: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"1": 1.0})
  label_style: str = "reference"
  max_damaged: float = OPTIONAL_DATA["max_damaged"]
  workers: int = OPTIONAL_DATA["workers"]
  threads: int = OPTIONAL_DATA["threads"]
  prefetch: int = OPTIONAL_DATA["prefetch"]


def make_config(data: Mapping[str, Any]) -> DataConfig:
  """config.data -> DataConfig.

  Raises:
    ValueError: an unknown key (it names the nearest one), or a value that is not one of those
      allowed.
  """
  known = [f.name for f in dataclasses.fields(DataConfig)]
  for key in data:
    if key not in known:
      near = difflib.get_close_matches(key, known, 1, 0)[0]
      raise ValueError(f"config.data has no key {key!r}; did you mean {near!r}?")
  config = DataConfig(**{k: data[k] for k in data})
  if config.format not in FORMATS:
    raise ValueError(f"config.data.format is one of {sorted(FORMATS)}, not {config.format!r}")
  if config.resize not in ("squash", "crop"):
    raise ValueError(f"config.data.resize is 'squash' or 'crop', not {config.resize!r}")
  if config.zoom < 1 or (config.resize != "crop" and (config.zoom > 1 or config.flip)):
    raise ValueError("config.data.zoom is 1 or more; zoom and flip need config.data.resize='crop'")
  if not config.sources:
    raise ValueError("config.data.sources is empty")
  if any(int(s) not in tokens.SCALES for s in config.scales) or not config.scales:
    raise ValueError(f"config.data.scales weighs scales 1, 2 and 3, not {list(config.scales)}")
  return config


class Single(abc.ABC):
  """A row is made of one record."""

  def __init__(self, data: DataConfig, record: Records, config, split: str, fields=None):
    self._data, self._record, self._seed, self._split = data, record, config.seed, split
    self._fields = fields or {}

  def row(self, index: int) -> Row:
    return self._record(index, self.use)

  def members(self, index: int) -> list[int]:
    """The records that a row is made of."""
    return [index]

  @abc.abstractmethod
  def use(self, record: dict, index: int) -> Row:
    """What a record becomes at an index; ValueError for one that cannot be used."""

  def checked(self, row: Row) -> Row:
    """The row; ValueError if the stage cannot learn from it."""
    for name, value in row.items():
      if name in self._fields:
        self._fields[name].check(name, value)
    return row


class Images(Single):
  """Format "images"."""

  def use(self, record: dict, index: int) -> Row:
    return {"image": self.image(record, index)}

  def image(self, record: dict, index: int) -> np.ndarray:
    """First image of a record -> uint8[y x 3]."""
    if not record.get("images"):
      raise ValueError(f"record {record.get('id', '?')} has no image")
    image, size = record["images"][0], self._data.size
    if not size:
      return image
    if self._data.resize == "squash":
      return transforms.squash(image, size)
    if self._split != "train":
      return transforms.center_crop(image, size)
    rng = np.random.default_rng((self._seed, index))
    return transforms.random_crop(image, size, rng, self._data.zoom, self._data.flip)


class Pairs(Images):
  """Format "pairs": the text is the record's caption, or else its last answer."""

  def __init__(self, data: DataConfig, record: Records, config, split: str, fields=None):
    super().__init__(data, record, config, split, fields)
    self._tok, self._vocab = _tokenizer(data, config)

  def use(self, record: dict, index: int) -> Row:
    caption = record.get("caption") or record["conversations"][-1]["value"]
    ids = self._tok.encode(caption, add_special_tokens=False).ids[: self._data.text_length]
    text = np.full(self._data.text_length, self._vocab.pad, np.int32)
    text[: len(ids)] = ids
    row = {"image": self.image(record, index), "text": text}
    return row | {"regions": record["regions"]} if "regions" in record else row


class Codes(Single):
  """Format "codes": TA-Tok's codes at all scales, and VQ codes, of a record's first image."""

  target, dtype = "vq", np.int32

  def use(self, record: dict, index: int) -> Row:
    target = self.target
    if not record.get("codes") or not record.get(target):
      raise ValueError(f"record {record.get('id', '?')} lacks 'codes' or {target!r}")
    row = {f"codes{s}": record["codes"][0][s].astype(np.int32) for s in tokens.SCALES}
    return self.checked({**row, target: record[target][0].astype(self.dtype)})


class Latents(Codes):
  """Format "latents": the codes, and DC-AE's latent, of a record's first image."""

  target, dtype = "latent", np.float32


class Classes(Single):
  """Format "classes": the label of a record, and the VQ codes of one of its images.

  A record may hold several views of its picture (crops, mirrored or not); one is drawn.
  """

  def use(self, record: dict, index: int) -> Row:
    if "label" not in record or not record.get("vq"):
      raise ValueError(f"record {record.get('id', '?')} lacks 'label' or 'vq'")
    views = record["vq"]
    view = views[draw(self._seed, index) % len(views)]
    row = {"label": np.array(record["label"], np.int32), "vq": view.astype(np.int32)}
    return self.checked(row)


class Packed:
  """Format "packed": conversations and documents, pictures as `config.representation` has them,
  those that have scales at a scale drawn for the example."""

  def __init__(self, data: DataConfig, record: Records, config, split: str, fields=None):
    del split, fields
    self._data, self._record, self._seed = data, record, config.seed
    self._tok, self._vocab = _tokenizer(data, config)
    self.layout = layout_of(config)
    self.layout.check(config, self._vocab.codes, data.length)
    self._scales = [int(s) for s in data.scales]
    weights = np.array(list(data.scales.values()), float)
    self._edges = np.cumsum(weights / weights.sum()).tolist()
    self._packer = Packer(
      self.example,
      self._vocab,
      length=data.length,
      window=data.window,
      rows=data.rows,
      seed=config.seed,
    )
    self.members, self.stats = self._packer.members, self._packer.stats

  def row(self, index: int) -> Row:
    row = self._packer.row(index)
    if self.layout.carries:  # windows hold tokens alone: the records are read again
      shown = [image for i in self.members(index) for image in self._carried(i)]
      row.update(self.layout.carried(row["tokens"], self._vocab, shown))
    return row

  def _carried(self, index: int) -> list[np.ndarray]:
    """The pictures uint8[y x 3] that record `index` shows, or the sub-codes [n m] of all it has."""
    return self._record(index, self._shown)

  def _shown(self, record: dict, index: int) -> list[np.ndarray]:
    self.use(record, index)  # one that makes no example has given its place to another
    record = self._worded(record, index)
    if self.layout.books:
      return list(record.get(self.layout.field) or ())
    images = record.get("images") or ()
    return [images[i] for i in tokens.shown_images(record, len(images))] if images else []

  def _worded(self, record: dict, index: int) -> dict:
    """A fair draw chooses the wording."""
    if "conversations_short" in record and draw(self._seed, index) & 1:
      return {**record, "conversations": record["conversations_short"]}
    return record

  def example(self, index: int) -> Example:
    return self._record(index, self.use)

  def use(self, record: dict, index: int) -> Example:
    """Tokens and labels; a draw chooses the scale."""
    record, bits = self._worded(record, index), draw(self._seed, index)
    place = bisect.bisect(self._edges, (bits >> 11) / 2**53)
    scale = self._scales[min(place, len(self._scales) - 1)]
    style = self._data.label_style
    return tokens.chat_tokens(self._tok, self._vocab, record, scale, style, self.layout)


FORMATS = {
  "images": Images,
  "pairs": Pairs,
  "codes": Codes,
  "classes": Classes,
  "latents": Latents,
  "packed": Packed,
}


def _tokenizer(data: DataConfig, config):
  if not data.tokenizer:
    raise ValueError(f"config.data.tokenizer is needed for format {data.format!r}")
  tok = tokens.load_tokenizer(sources.resolve(config.workdir, data.tokenizer))
  return tok, tokens.make_vocab(tok)
