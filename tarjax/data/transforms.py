"""Images as uint8[y x 3] arrays: reading what people have, resizing, cropping."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
ORIENTATION = 0x0112  # the EXIF tag


def to_rgb(source: bytes | str | Path | Image.Image) -> np.ndarray:
  """Encoded bytes, a path or a PIL image -> uint8[y x 3], read-only.

  EXIF rotation is applied, 16-bit values are scaled (PIL alone would clip them), alpha is
  dropped, and of an animation the first frame is taken.

  Raises:
    ValueError: not an image, a damaged one, or one too large to be honest.
    OSError: a path that cannot be opened.
  """
  name = "the image"
  if isinstance(source, str | Path):
    name, source = str(source), Path(source).read_bytes()
  try:
    image = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(source))
    image.load()
    image = _upright(image)
    if image.mode == "F" or image.mode.startswith("I"):
      return _gray(np.asarray(image, np.float32), image.mode)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
  except UnidentifiedImageError as e:
    raise ValueError(f"{name} is not an image file") from e
  except Image.DecompressionBombError as e:
    raise ValueError(f"{name} has too many pixels: {e}") from e
  except Exception as e:  # Pillow's readers raise all kinds on damage
    raise ValueError(f"{name} is damaged: {e}") from e


def squash(image: np.ndarray, size: int) -> np.ndarray:
  """uint8[y x 3] -> uint8[size size 3]; bicubic with antialiasing, aspect ratio ignored."""
  return _resize(image, size, size)


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
  """uint8[y x 3] -> uint8[size size 3]: short side resized to size, then the middle."""
  image = _short_side(image, size)
  top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
  return image[top : top + size, left : left + size]


def random_crop(
  image: np.ndarray, size: int, rng: np.random.Generator, zoom: float = 1.0, flip: bool = False
) -> np.ndarray:
  """uint8[y x 3] -> uint8[size size 3]: short side resized to size, then a random place.

  Args:
    zoom: the short side is drawn between size and so many times as much.
    flip: half of the pictures are mirrored, left to right.
  """
  side = int(rng.integers(size, int(size * zoom) + 1)) if zoom > 1 else size
  image = _short_side(image, side)
  top, left = rng.integers(0, [image.shape[0] - size + 1, image.shape[1] - size + 1])
  image = image[top : top + size, left : left + size]
  return image[:, ::-1] if flip and rng.integers(2) else image


def _upright(image: Image.Image) -> Image.Image:
  """Turned as EXIF says; EXIF that cannot be read says nothing."""
  try:
    turned = image.getexif().get(ORIENTATION, 1) != 1
    return (ImageOps.exif_transpose(image) or image) if turned else image
  except Exception:  # Pillow's reader of EXIF raises all kinds on damage
    return image


def _gray(values: np.ndarray, mode: str) -> np.ndarray:
  """float32[y x] of a 16-bit, 32-bit or float picture -> uint8[y x 3]."""
  high, scale = values.max(initial=0), 1.0
  if mode.startswith("I;16") or high > 255:  # 16-bit files open as "I" in older Pillows
    scale = 255 / 65535
  elif mode == "F" and high <= 1:
    scale = 255.0
  gray = np.clip(np.round(values * scale), 0, 255).astype(np.uint8)
  return np.repeat(gray[..., None], 3, axis=-1)


def _short_side(image: np.ndarray, size: int) -> np.ndarray:
  y, x = image.shape[:2]
  ratio = size / min(y, x)
  return _resize(image, max(size, round(y * ratio)), max(size, round(x * ratio)))


def _resize(image: np.ndarray, y: int, x: int) -> np.ndarray:
  if image.shape[:2] == (y, x):
    return image
  return np.asarray(Image.fromarray(image).resize((x, y), Image.Resampling.BICUBIC))
