"""Pictures in ADM's layout: an .npz whose arr_0 is uint8[n y x 3], read and written piecemeal."""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tarjax.config import UserError

ARRAY = "arr_0"


def read(path: str | Path, batch: int) -> Iterator[np.ndarray]:
  """Yields uint8[<=batch y x 3].

  Raises:
    UserError: no such file, not such an archive, other pictures than uint8[n y x 3], a short file.
  """
  path = Path(path)
  if not path.is_file():
    raise UserError(f"{path} does not exist")
  try:
    with zipfile.ZipFile(path) as archive, archive.open(f"{ARRAY}.npy") as file:
      version = np.lib.format.read_magic(file)
      header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
      shape, fortran, dtype = header(file)
      if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran:
        raise UserError(f"{path}: {ARRAY} is {dtype}{list(shape)}, not uint8[n y x 3]")
      size = int(np.prod(shape[1:]))
      for start in range(0, shape[0], batch):
        count = min(batch, shape[0] - start)
        data = file.read(count * size)
        yield np.frombuffer(data, np.uint8).reshape(count, *shape[1:])
  except KeyError as e:
    raise UserError(f"{path} has no {ARRAY}") from e
  except (zipfile.BadZipFile, ValueError, EOFError, AttributeError) as e:
    raise UserError(f"{path} is not a whole .npz of pictures: {e}") from e


def gaussians(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Statistics that stand beside the pictures: {"pool", "spatial"} -> mean, covariance, if any."""
  names = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
  try:
    with np.load(path) as file:
      there = {k: pair for k, pair in names.items() if set(pair) <= set(file.files)}
      return {k: (file[mean], file[cov]) for k, (mean, cov) in there.items()}
  except (OSError, ValueError, zipfile.BadZipFile) as e:
    raise UserError(f"{path} is not a whole .npz: {e}") from e


@contextlib.contextmanager
def writing(path: str | Path, shape: tuple[int, int, int, int]):
  """A function to call with uint8[b y x 3] until all are there; the file is whole or absent.

  Raises:
    ValueError: more or fewer pictures, or of another size.
  """
  path = Path(path)
  new, left = path.with_name(path.name + ".new"), shape[0]
  with (
    zipfile.ZipFile(new, "w") as archive,
    archive.open(f"{ARRAY}.npy", "w", force_zip64=True) as f,
  ):
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(f, header)

    def write(images: np.ndarray) -> None:
      nonlocal left
      left -= len(images)
      if images.dtype != np.uint8 or images.shape[1:] != shape[1:] or left < 0:
        raise ValueError(f"{path} takes uint8{list(shape)}, not also {list(images.shape)}")
      f.write(np.ascontiguousarray(images).tobytes())

    yield write
  if left:
    raise ValueError(f"{path} lacks {left} of {shape[0]} pictures")
  os.replace(new, path)
