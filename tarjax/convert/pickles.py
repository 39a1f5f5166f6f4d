"""PyTorch pickles, read one tensor at a time; nothing in them is executed. Needs torch.

Of newer files, tensors stay in the mapped file until they are read.
"""

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tarjax.convert.formats import DTYPES, Sha256, Tensor, damage
from tarjax.convert.rules import ConversionError

BY_NAME = {np.dtype(dtype).name: np.dtype(dtype) for dtype in DTYPES.values()}
CARRIERS = {  # of dtypes that torch does not hand to numpy
  np.dtype(ml_dtypes.bfloat16): "int16",
  np.dtype(ml_dtypes.float8_e4m3fn): "int8",
  np.dtype(ml_dtypes.float8_e5m2): "int8",
}


def open_torch(path: Path):
  """(tensors, sha256 of the file, what stands around them).

  The file is {"model": {"name", "args", "sd"}}, {"model": state dict} or a bare state dict.
  """
  mapped = zipfile.is_zipfile(path)  # older files are not, and are read as a whole
  file = load_pickle(path, mapped)
  model = file.get("model", file) if isinstance(file, dict) else None
  around = {}
  if isinstance(model, dict) and isinstance(model.get("sd"), dict):
    around = {k: v for k, v in model.items() if k != "sd"}
    model = model["sd"]
  if not isinstance(model, dict) or not model:
    raise ConversionError(f"{path} holds no state dict: neither model.sd nor model nor itself")
  try:
    json.dumps(around)
  except (TypeError, ValueError) as e:
    raise ConversionError(f"{path}: beside its tensors it holds more than plain values: {e}") from e
  tensors = {str(name): tensor_of(path, str(name), t, mapped) for name, t in model.items()}
  return tensors, Sha256(path), around


def load_pickle(path: Path, mapped: bool) -> Any:
  """What a pickle holds, if it is tensors and plain values.

  Raises:
    ConversionError: anything else in it, by name, or a damaged file.
  """
  try:
    import torch
  except ImportError as e:
    raise ConversionError(f"{path} is a PyTorch file; reading it needs torch, install it") from e
  try:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
  except pickle.UnpicklingError as e:
    found = re.search(r"(?:GLOBAL|Unsupported class)\s+([\w.]+)", str(e))
    what = f"more than tensors, it wants {found[1]}" if found else "damaged, or more than tensors"
    raise ConversionError(f"{path} is refused: it is {what}") from e
  except (RuntimeError, EOFError, ValueError, TypeError, LookupError, OSError) as e:
    text = " ".join(str(e).split())[:200]
    raise ConversionError(f"{path} is a damaged PyTorch file: {text}") from e
  except (AttributeError, AssertionError, OverflowError, MemoryError, zipfile.BadZipFile) as e:
    raise ConversionError(f"{path} is a damaged PyTorch file: {type(e).__name__}: {e}") from e


def tensor_of(path: Path, name: str, value: Any, mapped: bool) -> Tensor:
  """A torch tensor as one to be read.

  Raises:
    ConversionError: something else, or a tensor that is not plain numbers.
  """
  if not hasattr(value, "untyped_storage") or str(value.layout) != "torch.strided":
    raise ConversionError(f"{path}: {name} is no plain tensor but a {type(value).__name__}")
  dtype = BY_NAME.get(str(value.dtype).removeprefix("torch."))
  if dtype is None or value.device.type != "cpu":
    raise ConversionError(f"{path}: {name} is of {value.dtype} on {value.device.type}")

  def read() -> np.ndarray:
    import torch

    with damage(path, f"PyTorch file at {name}"):
      carrier = CARRIERS.get(dtype)
      whole = value.detach().contiguous()
      plain = whole.view(getattr(torch, carrier)) if carrier else whole
      return plain.numpy().view(dtype)

  return Tensor(tuple(value.shape), dtype, path, read, mapped and value.is_contiguous())
