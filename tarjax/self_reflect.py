"""Self Reflect: the model judges its own pictures, and of several candidates the best is kept.

A candidate's score is P(Yes) at the first word of the answer to `fields.MATCHES`, the question that
the judgement data of `tarjax.reflect` teach, where only "Yes" and "No" count. Each counts in three
spellings (Yes, yes, YES) by their first tokens; a token is counted once.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tarjax.bundle import pool_scale
from tarjax.config import UserError
from tarjax.data import tokens
from tarjax.data.fields import MATCHES
from tarjax.pipeline import TarPipeline
from tarjax.prompts import padded, with_images

FEEDS = ("ids", "reencoded")  # how a candidate is shown: as its words, or as its picture read again


class Chosen(NamedTuple):
  """The best of several candidates for one prompt; ties go to the first."""

  image: np.ndarray  # uint8[y x 3]
  codes: np.ndarray  # int32[n] visual words
  seeds: list[int]  # of the candidates
  p_yes: np.ndarray  # float32[candidates]
  best: int


def judge(
  pipe: TarPipeline,
  shown: Sequence[np.ndarray],
  prompts: Sequence[str],
  images: Sequence[Sequence[np.ndarray]] | None = None,
  *,
  question: str = MATCHES,
  scale: int | None = None,
) -> np.ndarray:
  """P(Yes) / (P(Yes) + P(No)) of each candidate for its prompt: float32[b].

  Args:
    shown: visual words int[n] of any scale, or pictures uint8[y x 3], which are read again.
    prompts: one per candidate.
    images: per prompt, the pictures it refers to by `<image>`, as in `TarPipeline.generate`.
    question: `{prompt}` in it stands for the prompt.
    scale: at which pictures are read; None is the bundle's default, if there are scales.

  Raises:
    UserError: a question without `{prompt}`, an empty prompt, placeholders without images, or a
      tokenizer in which yes and no begin alike.
  """
  if "{prompt}" not in question:
    raise UserError(f"the question to the judge has no {{prompt}}: {question!r}")
  scale = pool_scale(pipe.bundle, scale)
  if shown[0].ndim == 3:
    shown = pipe.show(shown, scale)
  elif pipe.representation.understanding != "ids":
    raise UserError("this model reads pictures, not ids: let candidates be judged reencoded")
  asked = []
  for (prompt, given), own in zip(with_images(prompts, images), shown, strict=True):
    text = tokens.PLACEHOLDER + "\n" + question.replace("{prompt}", prompt)
    asked.append(pipe.prompt(text, [own, *pipe.show(given, scale)]))
  yes, no = answer_ids(pipe.tok)
  parts = []
  for rows, real in pipe.devices.batches(len(asked), pipe.batch):
    ids, mask = padded([asked[i] for i in rows], pipe.vocab.pad)
    given = pipe.inputs(ids, [asked[i].pictures for i in rows])
    last = pipe.devices.rows(mask.sum(1, dtype=np.int32) - 1)
    found = score_answers(pipe.mllm, pipe.params["mllm"], given, last, yes, no)
    parts.append(pipe.devices.host(found)[:real])
  return np.concatenate(parts)


def best_of(
  pipe: TarPipeline,
  prompts: Sequence[str],
  images: Sequence[Sequence[np.ndarray]] | None = None,
  *,
  n: int,
  seeds: Sequence[int],
  feed: str = "ids",
  question: str = MATCHES,
  scale: int | None = None,
  detokenizer: str = "ar",
  **settings,
) -> list[Chosen]:
  """`TarPipeline.generate` with the best of n candidates for each picture.

  Candidate 0 is the picture that `generate` draws from the same seed. Fed as ids, only the chosen
  are painted.

  Args:
    n: candidates.
    seeds: one per picture; those of its candidates are derived from it.
    feed: one of `FEEDS`.
    settings: as in `generate`.

  Raises:
    UserError: as `judge` and `generate`, an n below 1, or no such feed.
  """
  if n < 1 or feed not in FEEDS:
    raise UserError(f"best of {n} by {feed!r}: it takes 1 or more candidates, and one of {FEEDS}")
  pipe.detokenizer(detokenizer)
  drawn = [seed for first in seeds for seed in candidate_seeds(first, n)]
  asked = [prompt for prompt in prompts for _ in range(n)]
  given = None if images is None else [group for group in images for _ in range(n)]
  codes = pipe.visual_words(asked, given, seeds=drawn, scale=scale, **settings)  # [b*n length]
  pictures = pipe.draw(codes, drawn, detokenizer) if feed == "reencoded" else None
  shown: Any = codes if pictures is None else pictures
  scores = judge(pipe, shown, asked, given, question=question, scale=scale).reshape(-1, n)
  best = scores.argmax(1) + np.arange(len(prompts)) * n
  if pictures is None:
    kept = pipe.draw(codes[best], [drawn[i] for i in best], detokenizer)
  else:
    kept = pictures[best]
  return [
    Chosen(kept[i], codes[at], drawn[i * n : (i + 1) * n], scores[i], int(at) - i * n)
    for i, at in enumerate(best)
  ]


def settings(n: int, feed: str) -> dict[str, Any]:
  """What a result that was chosen by `best_of` depends on."""
  return {"best_of": n, "judge_feed": feed, "question": MATCHES}


def candidate_seeds(seed: int, n: int) -> list[int]:
  """uint32 seeds of n candidates: the picture's own, then hashes of it and their number."""
  hashed = (np.random.SeedSequence((seed, k)).generate_state(1)[0] for k in range(1, n))
  return [seed, *map(int, hashed)]


def answer_ids(tok) -> tuple[np.ndarray, np.ndarray]:
  """First tokens of yes and of no, int32[n] each.

  Raises:
    UserError: they have one in common.
  """
  yes, no = (
    {tok.encode(form, add_special_tokens=False).ids[0] for form in forms}
    for forms in (("Yes", "yes", "YES"), ("No", "no", "NO"))
  )
  if yes & no:
    raise UserError("the tokenizer begins yes and no with one token, so they cannot be compared")
  return np.array(sorted(yes), np.int32), np.array(sorted(no), np.int32)


@functools.partial(jax.jit, static_argnums=0)
def score_answers(mllm, params, given, last, yes, no) -> jax.Array:
  """Share of the yes tokens in the mass of both, after position `last` of each row: float32[b].

  What stands after a prompt is in nobody's past, so rows need no mask.
  """
  embeds = given.get("embeds")
  hidden, _ = mllm.apply(
    {"params": params}, given["ids"] if embeds is None else None, embeds=embeds
  )  # [b l d]
  hidden = jnp.take_along_axis(hidden, last[:, None, None], 1)  # [b 1 d]
  logits = mllm.apply({"params": params}, hidden, method="logits")[:, 0]  # [b v]
  mass = jax.nn.logsumexp(logits[:, yes], -1) - jax.nn.logsumexp(logits[:, no], -1)
  return jax.nn.sigmoid(mass)
