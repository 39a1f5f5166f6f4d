"""The chat format: conversations with images as one row of tokens and labels (paper Sec. 3.3).

Qwen2.5's chat frame around every turn, images as `<I0>`..`<I{codes-1}>`. An image the user shows
stands in the text as bare codes; an image the assistant draws is
`<im_start><S{s-1}><I..>..<im_end>`. Other representations than TA-Tok's have no `<S>`, and an image
that is shown to Janus stands as so many `<|image_pad|>` (`data.layouts`). Mind the namespaces:
`<|im_start|>` opens a turn (`Vocab.turn_start`), `<im_start>` opens an image (`Vocab.im_start`).
"""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from tarjax.data.layouts import SCALED, Layout, Picture

IGNORE = -100
SYSTEM = "You are a helpful assistant."
PLACEHOLDER = "<image>"
SCALES = (1, 2, 3)
LABEL_STYLES = ("reference", "clean")
ROLES = {
  "human": "user",
  "gpt": "assistant",
  "user": "user",
  "assistant": "assistant",
  "system": "system",
}
IGNORED, FRAME, CONTENT = range(3)  # labelled never / in the reference style only / always


class Vocab(NamedTuple):
  """Ids that the format needs.

  im_start, im_end, scale0 (`<S0>`) and image0 (`<I0>`) are -1, and codes is 0, in a tokenizer
  without image tokens. `size` is the number of rows in use: 217,206 with 65,536 codes.
  """

  turn_start: int  # <|im_start|>
  turn_end: int  # <|im_end|>, ends an answer
  pad: int  # <|endoftext|>, ends a plain document
  newline: int
  im_start: int  # <im_start>
  im_end: int  # <im_end>
  scale0: int
  image0: int
  codes: int
  size: int
  system: tuple[int, ...]  # the whole system turn
  assistant: tuple[int, ...]  # "assistant\n"
  place: int = -1  # <|image_pad|>, which stands in the places of an embedded image

  @property
  def stops(self) -> tuple[int, int]:
    """Ids that end a generated answer."""
    return self.turn_end, self.pad


def load_tokenizer(directory: str | Path) -> Tokenizer:
  """DIR/tokenizer.json, set to treat special tokens that are spelt out in a text as plain text.

  Raises:
    FileNotFoundError: no tokenizer.json there.
    ValueError: a file that is not a tokenizer.
  """
  path = Path(directory) / "tokenizer.json"
  if not path.is_file():
    raise FileNotFoundError(f"no tokenizer in {directory}: {path.name} is missing")
  try:
    tok = Tokenizer.from_file(str(path))
  except Exception as e:  # the library raises a bare Exception
    raise ValueError(f"{path} is not a tokenizer file: {e}") from e
  tok.encode_special_tokens = True
  return tok


def make_vocab(tok: Tokenizer) -> Vocab:
  """Reads the ids off a tokenizer; it may have no image tokens (text-only stages).

  Raises:
    ValueError: a missing chat token, or image tokens that are not one run of ids in the order
      <im_start> <im_end> <S0> <S1> <S2> <I0> <I1> ...
  """
  start, end, pad = (_known(tok, t) for t in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
  newline = _encode(tok, "\n")
  if len(newline) != 1:
    raise ValueError(f"the tokenizer must encode a newline as one token, not {len(newline)}")
  first, codes, size = tok.token_to_id("<im_start>"), 0, tok.get_vocab_size()
  if first is not None:
    for i, token in enumerate(("<im_end>", "<S0>", "<S1>", "<S2>", "<I0>")):
      if tok.token_to_id(token) != first + 1 + i:
        raise ValueError(f"{token} must have id {first + 1 + i}, not {tok.token_to_id(token)}")
    while tok.token_to_id(f"<I{codes}>") == first + 5 + codes:
      codes += 1
    if tok.token_to_id(f"<I{codes}>") is not None:
      raise ValueError(f"<I{codes}> must have id {first + 5 + codes}")
    size = first + 5 + codes
  return Vocab(
    turn_start=start,
    turn_end=end,
    pad=pad,
    newline=newline[0],
    im_start=-1 if first is None else first,
    im_end=-1 if first is None else first + 1,
    scale0=-1 if first is None else first + 2,
    image0=-1 if first is None else first + 5,
    codes=codes,
    size=size,
    system=(start, *_encode(tok, f"system\n{SYSTEM}"), end, *newline),
    assistant=tuple(_encode(tok, "assistant\n")),
    place=-1 if (place := tok.token_to_id("<|image_pad|>")) is None else place,
  )


def role_and_text(turn: dict) -> tuple[str, str]:
  """{"from", "value"} or {"role", "content"} -> ("user", "assistant" or "system", text)."""
  role = turn.get("from", turn.get("role"))
  text = turn.get("value", turn.get("content"))
  if role not in ROLES or not isinstance(text, str):
    raise ValueError(f"a turn needs a known role and a text; this one has role {role!r}")
  return ROLES[role], text


def read_turns(conversations: Sequence[dict], images: int) -> list[tuple[str, str]]:
  """Turns -> (role, text) each, from the user's first on, with one placeholder for every image.

  Raises:
    ValueError: no turn of the user, a turn without a known role or a text, or another number of
      placeholders than images.
  """
  turns = [role_and_text(turn) for turn in conversations]
  if turns and turns[0][0] != "user":
    turns = turns[1:]
  if not turns:
    raise ValueError("the conversation is empty")
  marks = sum(text.count(PLACEHOLDER) for _, text in turns)
  if marks != images:
    raise ValueError(f"{marks} {PLACEHOLDER} placeholders but {images} images")
  return turns


def shown_images(record: dict, images: int) -> list[int]:
  """Which of a record's images its user shows."""
  turns = read_turns(record["conversations"], images)
  roles = [role for role, text in turns for _ in range(text.count(PLACEHOLDER))]
  return [i for i, role in enumerate(roles) if role != "assistant"]


def image_ids(vocab: Vocab, codes) -> list[int]:
  """Codes int[n], or a number of embedded places -> token ids.

  Raises:
    ValueError: no image tokens in the vocabulary, codes that are not a row of integers, or a
      code out of range.
  """
  if isinstance(codes, int):
    if vocab.place < 0:
      raise ValueError("the tokenizer has no <|image_pad|>, so it cannot hold an embedded image")
    return [vocab.place] * codes
  codes = np.asarray(codes)
  if not vocab.codes:
    raise ValueError("the tokenizer has no image tokens, so it cannot hold an image")
  if codes.ndim != 1 or not codes.size or codes.dtype.kind not in "iu":
    raise ValueError(f"image codes must be integers [n], not {codes.dtype}{list(codes.shape)}")
  low, high = int(codes.min()), int(codes.max())
  if low < 0 or high >= vocab.codes:
    wrong = low if low < 0 else high
    raise ValueError(f"image code {wrong} is outside 0..{vocab.codes - 1}")
  return (codes.astype(np.int32) + vocab.image0).tolist()


def chat_tokens(
  tok: Tokenizer,
  vocab: Vocab,
  record: dict,
  scales: int | Sequence[int] = 1,
  label_style: str = "reference",
  layout: Layout = SCALED,
) -> tuple[np.ndarray, np.ndarray]:
  """One record -> (tokens int32[l], labels int32[l]); labels[i] is for token i, -100 is ignored.

  A conversation takes its images from record["codes"] (one dict from scale to uint16[n] each), or
  as another layout says, in the order of the `<image>` placeholders; `scales` is one scale, or one
  per image. A first turn that is not the user's is dropped. Label styles: "reference" labels whole
  assistant turns with their frame, and every newline, <|im_start|> and <|im_end|> of the other
  turns, as the public trainer does; "clean" labels only what the assistant says, and its
  <|im_end|>. A record with the key "text" is a plain document: all of it, and <|endoftext|>, is
  labelled.

  Raises:
    ValueError: an unknown role or label style, a scale without codes, a number of placeholders
      that is not the number of images, or a code out of range. It names the record.
  """
  if label_style not in LABEL_STYLES:
    raise ValueError(f"label_style must be one of {LABEL_STYLES}, not {label_style!r}")
  if "text" in record:
    ids = tok.encode(record["text"], add_special_tokens=False).ids
    tokens = np.array([*ids, vocab.pad], np.int32)
    return tokens, tokens.copy()
  try:
    pieces = _pieces(tok, vocab, record["conversations"], layout.pictures(record, scales))
  except (ValueError, KeyError) as e:
    raise ValueError(f"record {record.get('id', '?')}: {e}") from e
  tokens = np.array(list(itertools.chain.from_iterable(ids for ids, _ in pieces)), np.int32)
  kinds = np.repeat([kind for _, kind in pieces], [len(ids) for ids, _ in pieces])
  if label_style == "clean":
    return tokens, np.where(kinds == CONTENT, tokens, IGNORE).astype(np.int32)
  keep = (kinds != IGNORED) | (tokens == vocab.newline)
  keep |= (tokens == vocab.turn_start) | (tokens == vocab.turn_end)
  return tokens, np.where(keep, tokens, IGNORE).astype(np.int32)


def chat_prompt(
  tok: Tokenizer,
  vocab: Vocab,
  conversations: Sequence[dict],
  codes: Sequence = (),
  *,
  draw: bool = False,
  scale: int | None = None,
  scales: int | Sequence[int] = 1,
) -> np.ndarray:
  """Prompt for the next answer: int32[l], up to and including "<|im_start|>assistant\\n".

  Args:
    codes: one int[n] per `<image>` placeholder, or the number of an embedded image's places.
    draw: add <im_start>, and <S{scale-1}> too when `scale` is given: the answer is an image.
    scales: scale of each image that the assistant drew in earlier turns.

  Raises:
    ValueError: as `chat_tokens`, a scale that is not 1, 2 or 3, or no conversation.
  """
  each = [scales] * len(codes) if isinstance(scales, int) else list(scales)
  images = [Picture(c, c, s) for c, s in zip(codes, each, strict=True)]
  pieces = _pieces(tok, vocab, conversations, images)
  ids = list(itertools.chain.from_iterable(piece for piece, _ in pieces))
  ids += [vocab.turn_start, *vocab.assistant]
  if draw:
    if not vocab.codes:
      raise ValueError("the tokenizer has no image tokens, so nothing can be drawn")
    ids.append(vocab.im_start)
    if scale is not None:
      ids.append(_scale_id(vocab, scale))
  return np.array(ids, np.int32)


def t2i_prompt(tok: Tokenizer, vocab: Vocab, prompt: str, scale: int | None) -> np.ndarray:
  """Text to image: int32[l]; with scale None the model chooses the scale token itself."""
  turn = {"from": "human", "value": prompt}
  return chat_prompt(tok, vocab, [turn], draw=True, scale=scale)


def i2t_prompt(tok: Tokenizer, vocab: Vocab, question: str, *codes) -> np.ndarray:
  """Question about images, codes int[n] each, which stand in front of it: int32[l]."""
  turn = {"from": "human", "value": " ".join([PLACEHOLDER] * len(codes)) + f"\n{question}"}
  return chat_prompt(tok, vocab, [turn], codes)


def is_image(vocab: Vocab, tokens: np.ndarray) -> np.ndarray:
  """int32[l] -> bool[l]: image codes, scale tokens and image tags, and embedded places."""
  if not vocab.codes:
    return np.zeros(tokens.shape, bool)
  words = (tokens >= vocab.im_start) & (tokens < vocab.image0 + vocab.codes)
  return words | (tokens == vocab.place)


def _known(tok: Tokenizer, token: str) -> int:
  found = tok.token_to_id(token)
  if found is None:
    raise ValueError(f"the tokenizer has no {token}")
  return found


@functools.lru_cache(maxsize=16_384)
def _encode(tok: Tokenizer, text: str) -> tuple[int, ...]:
  """Cached, for short questions and answers come again and again."""
  return tuple(tok.encode(text, add_special_tokens=False).ids)


def _scale_id(vocab: Vocab, scale: int) -> int:
  if scale not in SCALES:
    raise ValueError(f"scale must be 1, 2 or 3, not {scale}")
  return vocab.scale0 + scale - 1


def _pieces(tok, vocab: Vocab, conversations, images) -> list[tuple[Sequence[int], int]]:
  """System turn and all turns as (ids, kind) pieces."""
  queue = iter(images)
  pieces: list[tuple[Sequence[int], int]] = [(vocab.system, IGNORED)]
  for role, text in read_turns(conversations, len(images)):
    pieces += _turn(tok, vocab, role, text, queue)
  return pieces


def _turn(tok, vocab: Vocab, role: str, text: str, queue) -> list[tuple[Sequence[int], int]]:
  """One turn with its frame. Role and text are encoded together, for newlines may merge."""
  answer = role == "assistant"
  frame, content = (FRAME, CONTENT) if answer else (IGNORED, IGNORED)
  head, *rest = text.split(PLACEHOLDER)
  ids = _encode(tok, f"{role}\n{head}") if head or not answer else vocab.assistant
  cut = len(vocab.assistant) if answer else 0
  pieces = [((vocab.turn_start,), frame), (ids[:cut], frame), (ids[cut:], content)]
  for tail in rest:
    pieces.append((_image(vocab, next(queue), answer), content))
    if tail:
      pieces.append((_encode(tok, tail), content))
  return [*pieces, ((vocab.turn_end,), content), ((vocab.newline,), frame)]


def _image(vocab: Vocab, image: Picture, drawn: bool) -> list[int]:
  """An image that is drawn, with its tags, or shown."""
  codes = image.drawn if drawn else image.shown
  if codes is None:
    raise ValueError(
      f"an image is {'drawn' if drawn else 'shown'}, but the record has no "
      f"{'codes' if drawn else 'pixels'} of it"
    )
  ids = image_ids(vocab, codes)
  if not drawn:
    return ids
  scale = [] if image.scale is None else [_scale_id(vocab, image.scale)]
  return [vocab.im_start, *scale, *ids, vocab.im_end]
