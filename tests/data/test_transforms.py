"""Reading pictures of every kind people have, resizing and cropping."""

import io

import numpy as np
import pytest
from PIL import Image

from tarjax.data import transforms

RAMP = np.arange(0, 240, 10, np.uint8).reshape(4, 6)
COLOUR = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)


def encode(image: Image.Image, kind: str, **kwargs) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, kind, **kwargs)
  return buffer.getvalue()


def test_rgb_is_untouched(tmp_path):
  png = encode(Image.fromarray(COLOUR), "PNG")
  (tmp_path / "a.jpg").write_bytes(png)  # a wrong extension does not matter
  for source in (png, tmp_path / "a.jpg", str(tmp_path / "a.jpg"), Image.fromarray(COLOUR)):
    image = transforms.to_rgb(source)
    assert image.dtype == np.uint8
    assert (image == COLOUR).all()


def test_sixteen_bits_are_scaled_not_clipped():
  deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
  assert (transforms.to_rgb(encode(deep, "PNG")) == RAMP[..., None]).all()
  dark = Image.fromarray(np.full((2, 2), 255, np.uint16))
  assert (transforms.to_rgb(encode(dark, "PNG")) == 1).all()
  wide = Image.fromarray(RAMP.astype(np.int32))
  assert (transforms.to_rgb(wide) == RAMP[..., None]).all()


def test_floats():
  unit = Image.fromarray(RAMP.astype(np.float32) / 255)
  assert (transforms.to_rgb(unit) == RAMP[..., None]).all()
  assert (transforms.to_rgb(Image.fromarray(np.ones((2, 2), np.float32))) == 255).all()
  assert (transforms.to_rgb(Image.fromarray(RAMP.astype(np.float32))) == RAMP[..., None]).all()


def test_gray_palette_alpha_and_bits():
  assert (transforms.to_rgb(encode(Image.fromarray(RAMP), "PNG")) == RAMP[..., None]).all()
  flat = Image.new("RGB", (5, 4), (200, 30, 60))
  alpha = flat.copy()
  alpha.putalpha(10)
  sources = (flat.quantize(4), alpha, alpha.quantize(4), flat.convert("CMYK"))
  for source, kind in zip(sources, ("PNG", "PNG", "GIF", "TIFF"), strict=True):
    image = transforms.to_rgb(encode(source, kind))
    assert image.shape == (4, 5, 3)
    assert np.abs(image.astype(int) - (200, 30, 60)).max() <= 1, source.mode
  assert (transforms.to_rgb(Image.new("1", (2, 3), 1)) == 255).all()


def test_cmyk_jpeg():
  jpeg = encode(Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK"), "JPEG", quality=95)
  assert np.abs(transforms.to_rgb(jpeg).astype(int) - (200, 30, 60)).max() < 12


def test_first_frame_of_an_animation():
  frames = [Image.new("RGB", (3, 3), c) for c in ("red", "blue")]
  gif = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
  assert (transforms.to_rgb(gif) == (255, 0, 0)).all()


def test_exif_rotation():
  exif = Image.Exif()
  exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
  png = encode(Image.fromarray(COLOUR), "PNG", exif=exif)
  assert (transforms.to_rgb(png) == np.rot90(COLOUR, -1)).all()


def test_exif_that_cannot_be_read_says_nothing():
  for exif in (b"Exif\0\0rubbish", b"Exif\0\0MM\0*\0\0\xff\xff" + bytes(8)):
    jpeg = encode(Image.fromarray(COLOUR), "JPEG", exif=exif)
    assert transforms.to_rgb(jpeg).shape == COLOUR.shape


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "is not an image file"),
    (b"hello", "is not an image file"),
    (encode(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")[:900], "is damaged"),
  ],
)
def test_damaged_files(data, message, tmp_path):
  (tmp_path / "x.jpg").write_bytes(data)
  with pytest.raises(ValueError, match=rf"the image {message}"):
    transforms.to_rgb(data)
  with pytest.raises(ValueError, match=rf"x\.jpg {message}"):
    transforms.to_rgb(tmp_path / "x.jpg")


def test_too_many_pixels(monkeypatch):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
  with pytest.raises(ValueError, match="too many pixels"):
    transforms.to_rgb(encode(Image.fromarray(COLOUR), "PNG"))


def test_squash_is_pils_bicubic():
  noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
  expected = np.asarray(Image.fromarray(noise).resize((16, 16), Image.Resampling.BICUBIC))
  assert (transforms.squash(noise, 16) == expected).all()
  assert transforms.squash(noise[:16, :16], 16) is not None
  assert (transforms.squash(noise[:16, :16], 16) == noise[:16, :16]).all()


def test_crops():
  ramp = np.tile(np.arange(0, 240, 4, np.uint8)[None, :, None], (20, 1, 3))  # 20 x 60
  middle = transforms.center_crop(ramp, 20)
  assert (middle == ramp[:, 20:40]).all()
  lefts = set()
  for seed in range(200):
    crop = transforms.random_crop(ramp, 20, np.random.default_rng(seed))
    left = int(crop[0, 0, 0]) // 4
    assert (crop == ramp[:, left : left + 20]).all()
    lefts.add(left)
  assert min(lefts) == 0 and max(lefts) == 40
  again = transforms.random_crop(ramp, 20, np.random.default_rng(3))
  assert (again == transforms.random_crop(ramp, 20, np.random.default_rng(3))).all()
  slopes = []
  for seed in range(200):
    crop = transforms.random_crop(ramp, 20, np.random.default_rng(seed), zoom=1.25, flip=True)
    assert crop.shape == (20, 20, 3)
    slopes.append(np.diff(crop[10, 3:-3, 0].astype(int)).mean())
  assert 60 < sum(slope < 0 for slope in slopes) < 140
  sizes = 20 * 4 / np.abs(slopes)  # of the short side
  assert 19.5 < sizes.min() < 20.5 and 24 < sizes.max() < 26
  assert transforms.center_crop(ramp, 10).shape == (10, 10, 3)
  assert transforms.center_crop(ramp[:, :7], 10).shape == (10, 10, 3)
