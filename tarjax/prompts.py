"""What a language model is asked in a batch, and what is read out of its answers."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tarjax.config import UserError
from tarjax.data import tokens

BUCKET = 32  # prompts are padded to a multiple, so that few programs are compiled


class Prompt(NamedTuple):
  ids: np.ndarray  # int32[l]
  pictures: list[np.ndarray]  # uint8[y x 3], in the order of their places, where they are embedded


def with_images(prompts, images) -> Iterator[tuple[str, list[np.ndarray]]]:
  """(prompt, its images) pairs, a placeholder for each; UserError where they do not fit."""
  for k, prompt in enumerate(prompts):
    given = list(images[k]) if images is not None else []
    if not prompt.strip():
      raise UserError("the prompt is empty")
    marks = prompt.count(tokens.PLACEHOLDER)
    if given and not marks:
      prompt = tokens.PLACEHOLDER * len(given) + " " + prompt
    elif marks != len(given):
      raise UserError(f"the prompt has {marks} {tokens.PLACEHOLDER} and {len(given)} images")
    yield prompt, given


def padded(
  prompts: Sequence[Prompt], pad: int, *, left: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """Prompts -> their ids int32[b l], filled on the right or left, and which are theirs: bool[b l].

  The length is a multiple of BUCKET.
  """
  longest = max(len(p.ids) for p in prompts)
  length = -(-longest // BUCKET) * BUCKET
  ids = np.full((len(prompts), length), pad, np.int32)
  mask = np.zeros((len(prompts), length), bool)
  for row, prompt in enumerate(prompts):
    first = length - len(prompt.ids) if left else 0
    part = slice(first, first + len(prompt.ids))
    ids[row, part], mask[row, part] = prompt.ids, True
  return ids, mask


def only_codes(ids: np.ndarray, first: int, codes: int, count: int) -> np.ndarray:
  """The first `count` visual words among ids int32[l], filled up with code 0: int32[count]."""
  found = ids[(ids >= first) & (ids < first + codes)][:count] - first
  return np.pad(found, (0, count - len(found))).astype(np.int32)


def until(ids: np.ndarray, stops: set[int]) -> list[int]:
  """Ids before the first stop."""
  at = [i for i, t in enumerate(ids) if int(t) in stops]
  return [int(t) for t in ids[: at[0] if at else None]]
