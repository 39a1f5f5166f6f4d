"""Qwen2, Qwen2.5 and Tar language models: a Hugging Face folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tarjax.convert.kinds import Found
from tarjax.convert.plan import Table
from tarjax.convert.qwen2 import HEAD, TABLE, VISION, hf_config, qwen2_config, qwen2_rules
from tarjax.convert.rules import ConversionError, flatten
from tarjax.convert.store import bits
from tarjax.convert.tensors import Source
from tarjax.models.qwen2 import Qwen2, Qwen2Config
from tarjax.models.tar import MARKS

TASK, FORMAT, FILE = "mllm", "hf", "model.safetensors"
PARTS = (
  ("word table", r"embed/.*"),
  ("blocks", r"blocks/.*"),
  ("last norm", r"norm/.*"),
  ("output table", r"lm_head/.*"),
)
KEPT = VISION.replace(".", r"\.") + r".*|.*\.rotary_emb\.inv_freq"


def recognise(source: Source, given: Mapping[str, Any]) -> Found | None:
  config = {**source.config, **given}
  if "qwen" not in config.get("model_type", "qwen") or (
    "hidden_size" not in config and TABLE not in source.tensors
  ):
    return None
  if "hidden_size" not in config:
    raise ConversionError(f"{source.path} holds a Qwen2 but no config.json that says its sizes")
  model = qwen2_config(config)
  run = {
    "task": TASK,
    "model": dataclasses.asdict(model),
    "words": words(source.path, config, model),
  }
  layout: dict[str, Any] = {}
  return Found("qwen2", run, table(run, layout), layout)


def words(folder: Path, config: Mapping[str, Any], model: Qwen2Config) -> dict[str, int]:
  """Rows in use: {"text_rows", "codes"}; a Tar says them in its config, and its tokenizer knows.

  Raises:
    ConversionError: more words than the table has rows, or ids in another order than a Tar's.
  """
  if "image_start_tag_id" in config and "image_start_token_id" in config:
    text, first = config["image_start_tag_id"], config["image_start_token_id"]
    codes = config["image_end_token_id"] - first + 1
    if not text > 0 or first != text + MARKS or not codes > 0:
      raise ConversionError(
        f"{folder}: in its config the tags begin at {text} and the visual words are {first}.."
        f"{first + codes - 1}; a Tar's begin {MARKS} rows after the tags"
      )
  elif (folder / "tokenizer.json").is_file():
    text, codes = tokenizer_words(folder)
  else:
    text, codes = model.vocab, 0
  rows = text + (MARKS + codes if codes else 0)
  if rows > model.vocab:
    raise ConversionError(f"{folder}: its {rows} words do not fit a table of {model.vocab} rows")
  return {"text_rows": text, "codes": codes}


def tokenizer_words(folder: Path) -> tuple[int, int]:
  """(words of text, visual words) of a tokenizer, which may have none of the latter."""
  from tarjax.data.tokens import load_tokenizer

  tokenizer = load_tokenizer(folder)
  first, image = tokenizer.token_to_id("<im_start>"), tokenizer.token_to_id("<I0>")
  if first is None or image is None:
    return tokenizer.get_vocab_size(), 0
  codes = 0
  while tokenizer.token_to_id(f"<I{codes}>") == image + codes:
    codes += 1
  return first, codes


def check(source: Source, found: Found) -> None:
  """The copy of the word table that some tied checkpoints hold must be one."""
  if found.config["model"]["tied"] and HEAD in source.tensors:
    one, two = source.tensors[TABLE], source.tensors[HEAD]
    if one.dtype != two.dtype or one.shape != two.shape or differ(one.read(), two.read()):
      raise ConversionError(f"{HEAD} differs from {TABLE}, but the model is tied")


def differ(one, two) -> bool:
  return bool((bits(one) != bits(two)).any())


def table(config: Mapping[str, Any], layout: Mapping[str, Any]) -> Table:
  model = Qwen2Config(**config["model"])
  ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  boxed = jax.eval_shape(Qwen2(model).init, jax.random.key(0), ids)["params"]
  shapes = {name: leaf.shape for name, leaf in flatten(nn.meta.unbox(boxed)).items()}
  copy = "|" + HEAD.replace(".", r"\.") if model.tied else ""
  return Table(qwen2_rules(model), shapes, verbatim=KEPT + copy)


def around(config: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
  """A config.json; that of a Tar names the ids of its visual words (SPEC of the vocabulary)."""
  made, use = hf_config(Qwen2Config(**config["model"])), config["words"]
  if use["codes"]:
    first = use["text_rows"]
    made |= {
      "image_start_tag_id": first,
      "image_end_tag_id": first + 1,
      "scale_start_token_id": first + 2,
      "scale_end_token_id": first + 4,
      "image_start_token_id": first + MARKS,
      "image_end_token_id": first + MARKS + use["codes"] - 1,
    }
  return made
