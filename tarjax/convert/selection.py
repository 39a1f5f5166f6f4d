"""Which rows of a language model's word table are TA-Tok's codebook: chosen, or found again."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tarjax.config import write_json
from tarjax.convert.exporting import Run, find_origin, open_run
from tarjax.convert.importing import fresh
from tarjax.convert.rules import ConversionError
from tarjax.convert.store import blocks
from tarjax.models.vq import select_codebook

IDS = "selected_token_ids.npy"
WORDS, E_ROWS = ("params", "embed/embedding"), ("frozen", "embedding")
NOWHERE = -1  # the id of a code that is no word's row


def open_kind(spec: str, kind: str, what: str) -> Run:
  """A run that must be of one kind.

  Raises:
    ConversionError: it is of another.
  """
  run = open_run(spec)
  if run.kind != kind:
    raise ConversionError(f"{spec} is {run.kind}, no {what}")
  return run


def rows_of(run: Run, place: tuple[str, str]) -> Iterator[tuple[int, np.ndarray]]:
  """(number of the first row, rows) of a table, some megabytes at a time."""
  tree, name = place
  if place not in run.arrays:
    raise ConversionError(f"{run.path} has no {tree}/{name}")
  count, width = run.arrays[place].shape
  for start, stop in blocks(count, width):
    yield start, run.trees[tree].rows(name, start, stop)


def bpe_entries(run: Run) -> int | None:
  """How many ordinary words the model's tokenizer has, without the added ones; None without it."""
  origin = find_origin(run.path)
  path = origin / "tokenizer.json" if origin else None
  if path is None or not path.is_file():
    return None
  try:
    return len(json.loads(path.read_text())["model"]["vocab"])
  except (ValueError, KeyError, TypeError) as e:
    raise ConversionError(f"{path} is damaged: {e!r}") from e


def select(llm: str, k: int, to: Path, metric: str, direction: str, candidates: int | None) -> str:
  """Chooses k rows (paper Sec. 3.1) and saves their ids; returns what was done.

  Args:
    llm: run of a language model.
    k: how many.
    to: folder to make, with selected_token_ids.npy, ascending, and selection.json.
    metric: of `select_codebook`.
    direction: of `select_codebook`.
    candidates: the first so many rows; None is the tokenizer's ordinary words.
  """
  run = open_kind(llm, "qwen2", "language model")
  count, width = run.arrays[WORDS].shape
  first = bpe_entries(run) or run.config["words"]["text_rows"] if candidates is None else candidates
  if not 0 < k <= first <= count:
    raise ConversionError(
      f"k={k} of {first} candidates in a table of {count} rows: there must be 0 < k <= candidates "
      "<= rows"
    )
  with fresh(to, 8 * k) as partial:
    table = np.empty((first, width), run.arrays[WORDS].dtype)
    for start, rows in rows_of(run, WORDS):
      if start < first:
        table[start : start + len(rows)] = rows[: first - start]
    ids = select_codebook(table, k, metric, direction)
    partial.mkdir()
    np.save(partial / IDS, ids)
    record = {"llm": llm, "k": k, "metric": metric, "direction": direction, "candidates": first}
    write_json(partial / "selection.json", record)
  return f"{to}: {k} of {first} rows, those of {direction} mean {metric} distance"


def recover(ta_tok: str, llm: str) -> tuple[np.ndarray, str]:
  """Which word each row of E is, by exact equality in E's dtype.

  Returns:
    int64[k] token ids, the first of equal rows, -1 for no word; and a sentence with the counts.

  Raises:
    ConversionError: tables of different widths.
  """
  tok, model = open_kind(ta_tok, "ta_tok", "TA-Tok"), open_kind(llm, "qwen2", "language model")
  codes, words = tok.arrays.get(E_ROWS), model.arrays[WORDS]
  if codes is None:
    raise ConversionError(f"{ta_tok} has no frozen/embedding")
  if codes.shape[1] != words.shape[1]:
    raise ConversionError(
      f"the rows of {ta_tok} are {codes.shape[1]} wide and those of {llm} {words.shape[1]}: "
      "it was made from another language model"
    )
  known: dict[bytes, list[int]] = {}
  for start, rows in rows_of(model, WORDS):
    for i, key in enumerate(digests(rows.astype(codes.dtype))):
      known.setdefault(key, []).append(start + i)
  ids, shared = np.full(codes.shape[0], NOWHERE, np.int64), 0
  for start, rows in rows_of(tok, E_ROWS):
    for i, key in enumerate(digests(rows)):
      if key in known:
        ids[start + i] = known[key][0]
        shared += len(known[key]) > 1
  lost = int((ids == NOWHERE).sum())
  text = f"{len(ids) - lost} of {len(ids)} rows are words of {llm}, {lost} match nothing"
  return ids, text + (f", {shared} match several words with equal rows" if shared else "")


def save_ids(path: Path, ids: np.ndarray) -> None:
  """Writes a .npy file, of exactly this name.

  Raises:
    ConversionError: a file is there already.
  """
  with fresh(path, ids.nbytes) as partial, open(partial, "wb") as f:
    np.save(f, ids)


def digests(rows: np.ndarray) -> list[bytes]:
  """One key per row, equal for equal values; -0 counts as 0."""
  whole = np.ascontiguousarray(rows + np.zeros((), rows.dtype))
  return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in whole]
