r"""A small byte-level BPE in Qwen2.5's form, and the image words added to any tokenizer.

  python -m tarjax.data.tokenizer DIR [OUT CODES]

The tokenizer has Qwen2.5's pre-tokenizer, its 22 added tokens in its order, and its chat frame, so
that whatever works with it works with the real one. It is trained on `digits.text_documents`, and
on the words of the chat frame, which then take one token each.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from tarjax.data import digits

VOCAB = 1536  # entries of the BPE; the 22 added tokens come on top
SPECIAL = (
  *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
  *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
  *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
ADDED = (
  *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
  *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT = (
  "{%- if not messages or messages[0]['role'] != 'system' -%}"
  "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}"
  "{%- endif -%}"
  "{%- for message in messages -%}"
  "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
  "{%- endfor -%}"
  "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
FRAME = "system\nYou are a helpful assistant.\nuser\nassistant\n"
SETTINGS = {
  "tokenizer_class": "PreTrainedTokenizerFast",
  "eos_token": "<|im_end|>",
  "pad_token": "<|endoftext|>",
  "model_max_length": 32768,
  "clean_up_tokenization_spaces": False,
  "chat_template": CHAT,
}
FILES = ("tokenizer.json", "tokenizer_config.json")


def image_words(codes: int) -> list[str]:
  """The words of an image in the order of their ids: tags, scales, codes (paper Sec. 3.3)."""
  return ["<im_start>", "<im_end>", "<S0>", "<S1>", "<S2>", *(f"<I{i}>" for i in range(codes))]


def build_tokenizer(
  out: str | os.PathLike, vocab_size: int = VOCAB, documents: list[str] | None = None
) -> Path:
  """Trains the tokenizer and saves it in Hugging Face format, unless `out` holds one already.

  Ids: BPE entries from 0, then the 22 added tokens. Takes about three seconds; the same documents
  give the same files.

  Raises:
    ValueError: fewer than 257 entries, or documents too short for so many.
  """
  if vocab_size < 257:
    raise ValueError(f"vocab_size={vocab_size} leaves no room beside the 256 bytes")
  out = Path(out)
  if all((out / file).exists() for file in FILES):
    return out
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  texts = digits.text_documents() if documents is None else documents
  tokenizer.train_from_iterator([*texts, *[FRAME] * (len(texts) // 10)], trainer)
  if tokenizer.get_vocab_size() != vocab_size:
    raise ValueError(
      f"the documents give {tokenizer.get_vocab_size()} BPE entries, fewer than {vocab_size}"
    )
  tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
  tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ADDED])
  return _save(tokenizer, SETTINGS, out)


def add_image_tokens(source: str | os.PathLike, out: str | os.PathLike, codes: int) -> Path:
  """Copies a tokenizer and appends the image words, as special tokens (paper Sec. 3.3).

  The first, `<im_start>`, takes the id len(tokenizer); see `image_words` for the order. Does
  nothing when `out` holds the result already.

  Raises:
    ValueError: no tokenizer in `source`, image words in it already, or another tokenizer in `out`.
  """
  source, out = Path(source), Path(out)
  if not (source / FILES[0]).exists():
    raise ValueError(f"no {FILES[0]} in {source}")
  tokenizer = tokenizers.Tokenizer.from_file(str(source / FILES[0]))
  names, base = image_words(codes), tokenizer.get_vocab_size()
  if tokenizer.token_to_id(names[0]) is not None:
    raise ValueError(f"the tokenizer in {source} has image words already")
  tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in names])
  if tokenizer.token_to_id(names[-1]) != base + len(names) - 1:
    raise ValueError(f"the tokenizer in {source} has words named like image words")
  if all((out / file).exists() for file in FILES):
    if tokenizers.Tokenizer.from_file(str(out / FILES[0])).to_str() != tokenizer.to_str():
      raise ValueError(f"{out} holds another tokenizer than {source} with {codes} image codes")
    return out
  settings = json.loads((source / FILES[1]).read_text()) if (source / FILES[1]).exists() else {}
  settings.pop("added_tokens_decoder", None)  # tokenizer.json lists them, and now lists more
  return _save(tokenizer, settings, out)


def _save(tokenizer: tokenizers.Tokenizer, settings: dict, out: Path) -> Path:
  """Writes both files beside `out` and renames, so that `out` is whole or absent."""
  out.parent.mkdir(parents=True, exist_ok=True)
  fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
  try:
    fresh.chmod(0o755)
    tokenizer.save(str(fresh / FILES[0]))
    (fresh / FILES[1]).write_text(json.dumps(settings, indent=2) + "\n")
    if out.exists():
      shutil.rmtree(out)  # left incomplete by another program
    fresh.rename(out)
  finally:
    shutil.rmtree(fresh, ignore_errors=True)
  return out


def main(argv: list[str]) -> int:
  """DIR trains a tokenizer; DIR OUT CODES copies it to OUT with the words of CODES visual codes."""
  if len(argv) not in (1, 3) or (len(argv) == 3 and not argv[2].isdigit()):
    print("usage: python -m tarjax.data.tokenizer DIR [OUT CODES]", file=sys.stderr)
    return 2
  try:
    out = build_tokenizer(argv[0])
    if len(argv) == 3:
      out = add_image_tokens(out, argv[1], int(argv[2]))
  except (ValueError, OSError) as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  print(f"tokenizer: {out}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
