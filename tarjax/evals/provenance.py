"""What scores depend on: weights, code, preprocessing, sampling."""

import hashlib
import importlib.metadata
from typing import Any

import jax

from tarjax.config import PACKAGES, revision
from tarjax.stamps import tree_hash


def of_model(pipe) -> dict[str, Any]:
  """Hashes of a `TarPipeline`'s weights and tokenizer, and how it takes pictures in."""
  weights = {name: tree_hash(jax.device_get(pipe.params[name])) for name in pipe.params}
  if name := pipe.bundle["components"].get("tokenizer"):
    weights["tokenizer"] = file_hash(pipe.folder / name / "tokenizer.json")
  taken = pipe.bundle["preprocessing"] | {"filter": "bicubic, antialiased"}
  if pipe.ta_tok:
    taken["encoder"] = pipe.ta_tok.cfg.encoder.image
  found: dict[str, Any] = {"checkpoint": weights, "preprocessing": taken}
  if name := pipe.bundle.get("representation"):
    found["representation"] = name
  return found


def of_code() -> dict[str, Any]:
  versions = {name: importlib.metadata.version(name) for name in PACKAGES}
  return {"revision": revision(), "versions": versions, "devices": jax.device_count()}


def file_hash(path) -> str:
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()
