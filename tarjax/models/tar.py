"""The Tar MLLM is Qwen2.5 with visual words: how its tables start (paper Sec. 3.3, Eq. 2).

Order of rows: the text tokenizer's, <im_start>, <im_end>, <S0>, <S1>, <S2>, <I0> .. <I{K-1}>,
padding. Text rows beyond the tokenizer's length (Qwen2.5 pads its table) are dropped first, as the
reference does.
"""

from collections.abc import Mapping

import numpy as np

MARKS = 5  # <im_start>, <im_end>, <S0>, <S1>, <S2>
EMBED_INIT = ("codebook", "selected_rows", "mean", "random")


def padded_rows(text_rows: int, codes: int, multiple: int = 1) -> int:
  """Rows of the widened table, padded so that shards stay aligned."""
  rows = text_rows + MARKS + codes
  return -(-rows // multiple) * multiple


def widen_table(
  table: np.ndarray,
  text_rows: int,
  rows: int,
  image_rows: np.ndarray | None,
  seed: int = 0,
  codes: int = 0,
) -> np.ndarray:
  """Text table float32[v d] -> float32[rows d].

  Args:
    table: the text model's rows; the first `text_rows` are kept.
    text_rows: length of the text tokenizer.
    rows: length of the result.
    image_rows: float32[K d], the rows of <I0>.. ; None draws `codes` rows from N(0, .02).
    seed: of that draw.
    codes: K, when `image_rows` is None.

  Raises:
    ValueError: a width or a count that does not fit.
  """
  text = np.asarray(table, np.float32)[:text_rows]
  if image_rows is None:
    image_rows = np.random.default_rng(seed).normal(0, 0.02, (codes, text.shape[1]))
  if image_rows.shape[1] != text.shape[1]:
    raise ValueError(
      f"visual words are {image_rows.shape[1]} wide and the language model {text.shape[1]}: "
      "choose widen.embed_init selected_rows, mean or random, or train a TA-Tok of that width"
    )
  if len(text) != text_rows or text_rows + MARKS + len(image_rows) > rows:
    raise ValueError(
      f"{len(text)} text rows, {MARKS} marks and {len(image_rows)} visual words do not fit "
      f"a tokenizer of {text_rows} and a table of {rows} rows"
    )
  mean = text.mean(0)
  wide = np.zeros((rows, text.shape[1]), np.float32)
  wide[:text_rows] = text
  wide[text_rows : text_rows + MARKS] = mean
  wide[text_rows + MARKS : text_rows + MARKS + len(image_rows)] = image_rows
  return wide


def widen(
  llm: Mapping,
  how: str,
  *,
  text_rows: int,
  rows: int,
  codebook=None,
  selected=None,
  codes=0,
  seed=0,
) -> dict:
  """Parameters of a text Qwen2.5 -> parameters of Tar, as numpy.

  Args:
    llm: the text model's parameters.
    how: "codebook" (C = E W + b), "selected_rows" (the language model's own rows that E was chosen
      from), "mean" (the mean text row), or "random" (the baseline of Table 3).
    text_rows: length of the text tokenizer.
    rows: length of the widened tables.
    codebook: float32[K d] for "codebook".
    selected: int64[K] token ids for "selected_rows".
    codes: K for "mean" and "random".
    seed: of the random rows.
  """
  table = np.asarray(llm["embed"]["embedding"], np.float32)
  mean = table[:text_rows].mean(0)
  if how == "codebook":
    image_rows = np.asarray(codebook, np.float32)
  elif how == "selected_rows":
    image_rows = table[np.asarray(selected)]
  elif how == "mean":
    image_rows = np.tile(mean, (codes, 1))
  elif how == "random":
    image_rows = None
  else:
    raise ValueError(f"embed_init={how!r} is not one of {', '.join(EMBED_INIT)}")
  wide = {"embedding": widen_table(table, text_rows, rows, image_rows, seed, codes)}
  params = dict(llm, embed=wide)
  if "lm_head" in llm:  # untied: visual words start as the mean row, as the reference leaves them
    head = np.asarray(llm["lm_head"]["kernel"], np.float32).T  # [v d]
    count = codes if image_rows is None else len(image_rows)
    means = np.tile(head[:text_rows].mean(0), (count, 1))
    params["lm_head"] = {"kernel": widen_table(head, text_rows, rows, means).T}
  return params
