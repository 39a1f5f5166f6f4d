"""Repositories of the Hugging Face hub: downloaded to its cache, with the revision they had."""

import re
from pathlib import Path

from tarjax.convert.rules import ConversionError

# What conversion reads; a repository may also hold other formats of the same weights.
FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.safetensors", "negative_prompt_embeds.pth")


def fetch(name: str, revision: str | None) -> tuple[Path, str | None]:
  """A path, or "owner/repository" or "owner/repository/file" of the hub -> (path, revision).

  Raises:
    ConversionError: neither, or a repository that cannot be had.
  """
  if Path(name).exists():
    return Path(name), None
  found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+))?", name)
  if not found or name.startswith("."):
    raise ConversionError(f"{name} does not exist")
  try:
    import huggingface_hub as hub

    if found[2]:
      path = Path(hub.hf_hub_download(found[1], found[2], revision=revision))
    else:
      path = Path(hub.snapshot_download(found[1], revision=revision, allow_patterns=list(FILES)))
  except Exception as e:  # of a dozen kinds, by the library and by its HTTP client
    text = " ".join(str(e).split())[:200]
    raise ConversionError(
      f"{name} is no file here, and the hub does not give it ({type(e).__name__}: {text})"
    ) from e
  parts = path.parts
  return path, parts[parts.index("snapshots") + 1] if "snapshots" in parts else revision
