"""From the fields that people's files have to a record as `tarjax.data.sources` describes it.

image                a path, bytes, {"bytes", "path"}, or a list of these; none for text
conversations        turns {"from", "value"} or {"role", "content"}, or JSON text of these
conversations_short  the same, optional
caption, text        instead of a conversation: what the image shows, or a plain document
label                the number of the image's class, which makes up for a caption
"""

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tarjax.data import tokens, transforms

TASKS = ("t2i", "i2t")  # what a picture with a caption may become
CAPTIONS = ("caption", "text", "prompt")
ROLES = {"user": "human", "assistant": "gpt", "system": "system"}
SIMILAR = "Generate an image similar to"  # paper Sec. 3.4
MATCHES = 'Does this image match the prompt "{prompt}"? Answer yes or no.'  # Self Reflect
DESCRIBE = (
  "Please generate detailed descriptions of the given image.",
  "Describe the image in detail.",
  "What is shown in this image?",
  "Write a caption for this image.",
)


def make_record(
  fields: Any, read: Callable[[Any], np.ndarray], *, name: str, source: str, task: str
) -> dict:
  """Fields -> a record, checked.

  Args:
    read: image as the fields give it -> uint8[y x 3].
    name: the id of a record that has none.
    source: the name of the data set.
    task: "t2i" or "i2t", what an image with a caption becomes.

  Raises:
    ValueError: fields are missing, or do not fit each other; what `read` raises passes.
  """
  if not isinstance(fields, Mapping):
    raise ValueError(f"a record has fields, this one is a {type(fields).__name__}")
  name = str(name if fields.get("id") is None else fields["id"])
  record: dict[str, Any] = {"id": name, "source": source}
  images = image_list(fields)
  talk = fields.get("conversations", fields.get("messages"))
  if isinstance(fields.get("label"), int):
    record["label"] = fields["label"]
  unsaid = "" if images and "label" in record else None
  caption = next((fields[k] for k in CAPTIONS if isinstance(fields.get(k), str)), unsaid)
  if talk is not None:
    record["conversations"] = read_conversation(talk)
    if fields.get("conversations_short") is not None:
      record["conversations_short"] = read_conversation(fields["conversations_short"])
  elif caption is None:
    raise ValueError("it has neither 'conversations' nor a caption")
  elif images:
    talk = captioned(caption, name, "t2i" if caption == unsaid else task)
    record |= {"conversations": talk, "caption": caption}
  elif caption == fields.get("text"):
    return record | {"text": caption}
  else:
    raise ValueError("it has a caption but no image")
  check(record, len(images))  # before the images are decoded
  task = fields.get("task") or infer_task(record["conversations"], len(images))
  return record | {"task": task, "images": [read(image) for image in images]}


def check(record: Mapping[str, Any], images: int) -> None:
  """Raises ValueError unless the conversations have one placeholder for each of the images."""
  for key in ("conversations", "conversations_short"):
    if key in record:
      tokens.read_turns(record[key], images)


def image_list(fields: Mapping[str, Any]) -> list:
  """The images of a record, as its fields give them."""
  found = fields.get("image", fields.get("images"))
  if found is None or (isinstance(found, str) and not found):
    return []
  return list(found) if isinstance(found, list | tuple | np.ndarray) else [found]


def image_reader(root: str | Path) -> Callable[[Any], np.ndarray]:
  """What reads an image that is given as bytes, as a path within `root`, or as a dict of these."""

  def read(image: Any) -> np.ndarray:
    if isinstance(image, Mapping):
      image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, str) and image:
      return transforms.to_rgb(Path(root) / image)
    if isinstance(image, bytes):
      return transforms.to_rgb(image)
    raise ValueError(f"an image is a path or bytes, not {type(image).__name__}")

  return read


def read_conversation(talk: Any) -> list[dict]:
  """Turns in either spelling, or JSON text of them -> turns {"from", "value"}."""
  talk = json.loads(talk) if isinstance(talk, str | bytes) else talk
  if not isinstance(talk, list | tuple | np.ndarray) or not all(
    isinstance(t, Mapping) for t in talk
  ):
    raise ValueError("a conversation is a list of turns")
  turns = [tokens.role_and_text(turn) for turn in talk]
  return [{"from": ROLES[role], "value": text} for role, text in turns]


def captioned(caption: str, name: str, task: str) -> list[dict]:
  """A picture to draw from its caption, or to describe; the id chooses among the questions."""
  if task == "t2i":
    question, answer = caption, tokens.PLACEHOLDER
  else:
    question = DESCRIBE[zlib.crc32(name.encode("utf-8", "replace")) % len(DESCRIBE)]
    question, answer = f"{tokens.PLACEHOLDER}\n{question}", caption
  return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def check_task(task: str) -> str:
  """The task as it is; ValueError unless it is one that pictures with captions serve."""
  if task not in TASKS:
    raise ValueError(f"config.data.sources: task is one of {list(TASKS)}, not {task!r}")
  return task


def infer_task(turns: list[dict], images: int) -> str:
  """text, i2t, t2i, i2i or ti2i, by who shows images to whom."""
  mark = tokens.PLACEHOLDER
  asked = [t["value"] for t in turns if t["from"] == "human" and mark in t["value"]]
  drawn = any(t["from"] == "gpt" and mark in t["value"] for t in turns)
  if not images:
    return "text"
  if not drawn or not asked:
    return "t2i" if drawn else "i2t"
  return "i2i" if all(text.startswith(SIMILAR) for text in asked) else "ti2i"
