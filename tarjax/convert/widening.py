"""The start of Tar: a text Qwen2.5 with rows for visual words (paper Sec. 3.3, Eq. 2).

Rows: the tokenizer's words, <im_start>, <im_end>, <S0>, <S1>, <S2>, the visual words, padding. The
rules are those of `models/tar.py`; here they run on files, one table at a time.
"""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tarjax.convert.exporting import Run, find_origin
from tarjax.convert.importing import ORIGINAL, PLACES, finish, fresh
from tarjax.convert.kinds.qwen2 import tokenizer_words
from tarjax.convert.plan import Array, total
from tarjax.convert.rules import ConversionError
from tarjax.convert.selection import E_ROWS, IDS, NOWHERE, WORDS, open_kind
from tarjax.convert.store import TreeReader, TreeWriter
from tarjax.data.tokenizer import add_image_tokens
from tarjax.models.ta_tok import TaTok, TaTokConfig
from tarjax.models.tar import EMBED_INIT, MARKS, padded_rows

HEAD_INIT = ("mean", "codebook_tokens", "random")
HEAD = ("params", "lm_head/kernel")
STD = 0.02  # of random rows
STALE = ("tokenizer", "added_tokens", "special_tokens_map")  # files that the new tokenizer replaces


class Options(NamedTuple):
  """How the rows start.

  Attributes:
    embed_init: one of EMBED_INIT, or None: codebook, and selected_rows where widths differ; random
      without a TA-Tok.
    lm_head_init: one of HEAD_INIT, of an untied model; None is mean, as the reference has it.
    multiple: the tables have a multiple of so many rows.
    scale: the codebook is divided by it.
    selected: file of the codes' token ids; None looks for it beside TA-Tok.
    text_rows: words of text; None asks the tokenizer.
    seed: of random rows.
    codes: visual words that are not TA-Tok's.
  """

  embed_init: str | None = None
  lm_head_init: str | None = None
  multiple: int = 256
  scale: float = 1.0
  selected: str | None = None
  text_rows: int | None = None
  seed: int = 0
  codes: int | None = None


class Fill(NamedTuple):
  """What the rows of the visual words start as, and the words for it."""

  rows: np.ndarray | None  # [k d], None: the mean of the text rows
  text: str


def init_tar(llm: str, ta_tok: str | None, to: Path, options: Options) -> str:
  """Makes the run directory `to`, from which MLLM training starts; says which rule filled what.

  Without a TA-Tok there are `options.codes` visual words of another representation.

  Raises:
    ConversionError: runs that do not fit each other, or rules that do not fit them.
  """
  if bool(ta_tok) == bool(options.codes):
    raise ConversionError("whose visual words? Give either --ta-tok or --codes")
  model = open_kind(llm, "qwen2", "language model")
  tok = open_kind(ta_tok, "ta_tok", "TA-Tok") if ta_tok else None
  positive = {"multiple": options.multiple, "scale": options.scale, "text_rows": options.text_rows}
  positive["codes"] = options.codes
  for name, value in positive.items():
    if value is not None and not 0 < value < math.inf:  # NaN is neither
      raise ConversionError(f"{name}={value} must be a positive number")
  if options.seed < 0:
    raise ConversionError(f"seed={options.seed} must not be negative")
  if model.config["words"]["codes"]:
    raise ConversionError(f"{llm} has visual words already")
  tied = model.config["model"]["tied"]
  codes = TaTokConfig(**tok.config["model"]).codes if tok else options.codes or 0
  text_rows, tokenizer = words_of(model, options)
  rows = padded_rows(text_rows, codes, options.multiple)
  how = choose(model, tok, options, tied)
  config = {
    "task": "mllm",
    "model": {**model.config["model"], "vocab": rows},
    "words": {"text_rows": text_rows, "codes": codes},
  }
  arrays = {
    name: array._replace(layered=name.startswith("blocks/"))
    for (tree, name), array in model.arrays.items()
    if tree == "params"
  }
  width = arrays[WORDS[1]].shape[1]
  arrays[WORDS[1]] = arrays[WORDS[1]]._replace(shape=(rows, width))
  if not tied:
    arrays[HEAD[1]] = arrays[HEAD[1]]._replace(shape=(width, rows))
  with fresh(to, total(arrays.values())) as partial:
    partial.mkdir()
    writer = TreeWriter(partial / PLACES["params"], arrays)
    said = []
    try:
      for name in arrays:
        if name not in (WORDS[1], HEAD[1]):
          copy_array(model.trees["params"], writer, name, arrays[name])
      fill = visual_rows(model, tok, codes, how, options)
      said += fill_table(model, writer, WORDS[1], text_rows, codes, fill)
      if not tied:
        fill = head_rows(model, tok, codes, options)
        said += fill_table(model, writer, HEAD[1], text_rows, codes, fill)
      writer.finish()
    finally:
      writer.close()
    copy_origin(model, partial)
    if tokenizer:
      add_image_tokens(tokenizer, partial / "tokenizer", codes)
    sentence = describe(text_rows, codes, rows, said, tied)
    record = {
      "kind": "qwen2",
      "source": f"{llm} and {ta_tok or f'{codes} codes'}",
      "files": model.provenance.get("files", {}) | (tok.provenance.get("files", {}) if tok else {}),
      "layout": {"changed": True},
      "made": [sentence],
    }
    finish(partial, config, record)
  return sentence


def words_of(model: Run, options: Options) -> tuple[int, Path | None]:
  """(words of text, folder of the tokenizer or None).

  Raises:
    ConversionError: more words than the table has rows.
  """
  trained = (model.config.get("data") or {}).get("tokenizer", "")
  places = [find_origin(model.path), model.path / trained]
  folder = next((p for p in places if p and (p / "tokenizer.json").is_file()), None)
  count = options.text_rows or (tokenizer_words(folder)[0] if folder else None)
  count = count or model.config["words"]["text_rows"]
  have = model.arrays[WORDS].shape[0]
  if count > have:
    raise ConversionError(f"{count} words of text do not fit {model.path}'s table of {have} rows")
  return count, folder


def choose(model: Run, tok: Run | None, options: Options, tied: bool) -> str:
  """The rule of the visual words' rows.

  Raises:
    ConversionError: an unknown rule, or one that does not fit; a mismatch of widths is never
      passed over.
  """
  width, how = model.arrays[WORDS].shape[1], options.embed_init
  if how not in (None, *EMBED_INIT):
    raise ConversionError(f"embed_init {how!r} is none of {', '.join(EMBED_INIT)}")
  if options.lm_head_init not in (None, *HEAD_INIT):
    there = ", ".join(HEAD_INIT)
    raise ConversionError(f"lm_head_init {options.lm_head_init!r} is none of {there}")
  if tied and options.lm_head_init:
    raise ConversionError("lm_head_init is for untied models; here the word table is the output's")
  if tok is None:
    if how in ("codebook", "selected_rows") or options.lm_head_init == "codebook_tokens":
      raise ConversionError("rows of TA-Tok need --ta-tok: choose random or mean")
    return how or "random"
  net = TaTokConfig(**tok.config["model"])
  if net.width != width and how in (None, "codebook"):
    if how is None and ids_file(tok, options):
      return "selected_rows"
    raise ConversionError(
      f"the codebook is {net.width} wide and the language model {width}: choose --embed-init "
      "selected_rows (with --selected FILE), mean or random, or train a TA-Tok of that width"
    )
  return how or "codebook"


def ids_file(tok: Run, options: Options) -> Path | None:
  path = Path(options.selected) if options.selected else tok.path / IDS
  if options.selected and not path.is_file():
    raise ConversionError(f"{path} does not exist")
  return path if path.is_file() else None


def selected_ids(model: Run, tok: Run, codes: int, options: Options) -> np.ndarray:
  """int64[k], the token that each code is; -1 is none.

  Raises:
    ConversionError: no such file, or not k ids of this model.
  """
  path = ids_file(tok, options)
  if path is None:
    raise ConversionError(
      f"{tok.path} does not say which words its rows are; find them with convert "
      f"recover-selection --to FILE, and give --selected FILE"
    )
  try:
    ids = np.load(path, allow_pickle=False)
  except (ValueError, OSError, EOFError) as e:
    raise ConversionError(f"{path} is no file of token ids: {e}") from e
  limit = model.arrays[WORDS].shape[0]
  fits = isinstance(ids, np.ndarray) and ids.shape == (codes,) and ids.dtype.kind == "i"
  if not fits or ids.min() < NOWHERE or ids.max() >= limit:
    raise ConversionError(f"{path} does not hold {codes} token ids below {limit}")
  return ids


def visual_rows(model: Run, tok: Run | None, codes: int, how: str, options: Options) -> Fill:
  """The input rows of <I0> ..., by the rule `how`."""
  width = model.arrays[WORDS].shape[1]
  if tok and how == "codebook":
    rows = codebook(tok, TaTokConfig(**tok.config["model"])) / options.scale
    scale = f" / {options.scale:g}" if options.scale != 1 else ""
    return Fill(rows, f"codebook (C = E W + b of TA-Tok{scale})")
  if tok and how == "selected_rows":
    return picked(model, WORDS[1], selected_ids(model, tok, codes, options))
  if how == "random":
    draw = np.random.default_rng(options.seed).normal(0, STD, (codes, width))
    return Fill(draw.astype(np.float32), f"random (N(0, {STD}), seed {options.seed})")
  return Fill(None, "mean (of the text rows)")


def head_rows(model: Run, tok: Run | None, codes: int, options: Options) -> Fill:
  """The output rows of <I0> ..., of an untied model."""
  if tok and options.lm_head_init == "codebook_tokens":
    return picked(model, HEAD[1], selected_ids(model, tok, codes, options))
  if options.lm_head_init == "random":
    return visual_rows(model, tok, codes, "random", options._replace(seed=options.seed + 1))
  return visual_rows(model, tok, codes, "mean", options)


def codebook(tok: Run, net: TaTokConfig) -> np.ndarray:
  """float32[k d], unit rows if the tokenizer's are."""
  trees, quantizer = tok.trees, {"embedding": None, "proj": {}}
  quantizer["embedding"] = np.asarray(trees[E_ROWS[0]].read(E_ROWS[1]), np.float32)
  for part in ("kernel", "bias"):
    value = trees["params"].read(f"quantizer/proj/{part}")
    quantizer["proj"][part] = np.asarray(value, np.float32)
  if "quantizer/temperature_inv" in trees["params"].arrays:
    quantizer["temperature_inv"] = np.float32(1)  # not read for a codebook
  module: Any = TaTok(net)
  with jax.default_matmul_precision("highest"):
    return np.array(module.apply({"params": {"quantizer": quantizer}}, method="codebook"))


def picked(model: Run, name: str, ids: np.ndarray) -> Fill:
  """The model's own rows of these tokens; the mean row where a code is none."""
  table = text_table(model, name, max(int(ids.max()), 0) + 1)
  rows = np.asarray(table[np.maximum(ids, 0)], np.float32)
  lost = ids == NOWHERE
  text = "selected_rows (the model's own rows of the codes' tokens)"
  if lost.any():
    rows[lost] = np.nan  # becomes the mean of the text rows
    text += f", the mean for {int(lost.sum())} codes that are no token"
  return Fill(rows, text)


def text_table(model: Run, name: str, rows: int) -> np.ndarray:
  """The first rows of the word or the output table, [rows d], in its dtype."""
  tree = model.trees["params"]
  if name == HEAD[1]:
    return np.asarray(tree.read(name)).T[:rows]
  return np.asarray(tree.rows(name, 0, rows))


def fill_table(
  model: Run, writer: TreeWriter, name: str, text_rows: int, codes: int, fill: Fill
) -> list[str]:
  """Writes one widened table; returns what its visual words start as."""
  array = writer.arrays[name]
  rows, width = array.shape if name == WORDS[1] else array.shape[::-1]
  table = np.zeros((rows, width), array.dtype)
  table[:text_rows] = text_table(model, name, text_rows)
  mean = sum_rows(table[:text_rows]) / text_rows
  first = text_rows + MARKS
  table[text_rows:first] = mean
  visual = table[first : first + codes]
  visual[:] = mean if fill.rows is None else fill.rows
  if fill.rows is not None and (lost := np.isnan(fill.rows[:, 0])).any():
    visual[lost] = mean
  norms = mean_norm(table[:text_rows]), mean_norm(visual)
  writer.write(name, None, table if name == WORDS[1] else table.T)
  writer.wait()
  return [f"{fill.text}, mean norm {norms[1]:.3g} beside {norms[0]:.3g} of text"]


def parts(table: np.ndarray) -> Iterable[np.ndarray]:
  """A table in float32, some rows at a time."""
  return (np.asarray(table[i : i + 4096], np.float32) for i in range(0, len(table), 4096))


def sum_rows(table: np.ndarray) -> np.ndarray:
  return np.sum([part.sum(0, dtype=np.float64) for part in parts(table)], 0)


def mean_norm(table: np.ndarray) -> float:
  return float(sum(np.linalg.norm(part, axis=1).sum() for part in parts(table)) / len(table))


def copy_array(tree: TreeReader, writer: TreeWriter, name: str, array: Array) -> None:
  for layer in range(array.shape[0]) if array.layered else [None]:
    writer.write(name, layer, np.asarray(tree.read(name, layer)))
    writer.wait()


def copy_origin(model: Run, partial: Path) -> None:
  """What came with the language model, but for its tokenizer."""
  if origin := find_origin(model.path):
    (partial / ORIGINAL).mkdir()
    for file in origin.iterdir():
      if not file.name.startswith(STALE):
        shutil.copyfile(file, partial / ORIGINAL / file.name)


def describe(text_rows: int, codes: int, rows: int, said: list[str], tied: bool) -> str:
  first, end = text_rows + MARKS, text_rows + MARKS + codes
  head = "the output table is the same" if tied else f"in the output table {said[1]}"
  padding = f"; {end}..{rows - 1} padding, zero" if rows > end else ""
  return (
    f"rows 0..{text_rows - 1} text, as they were; {text_rows}..{first - 1} marks, the mean text "
    f"row; {first}..{end - 1} visual words by {said[0]}; {head}{padding}"
  )
