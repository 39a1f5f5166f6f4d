"""Pictures of classes and redrawn ones: the same in any batch, after a kill, and as PyTorch's."""

import json

import numpy as np
import pytest
import tiny_paper
import torch
from PIL import Image

from tarjax.evals import imagenet, samples

CLASSES, SIDE = 7, 6


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A bundle of a LlamaGen and a VQVAE, whose pictures of 8 px are resized to 6."""
  home = tmp_path_factory.mktemp("imagenet")
  for seed, stage in enumerate(("llamagen", "vqvae")):
    tiny_paper.make_run(home, stage, seed)
  parts = {"ar_dtok": "llamagen", "vqvae": "vqvae"}
  bundle = {"components": parts, "preprocessing": {"drawn": 8, "canvas": SIDE}, "sampling": {}}
  (home / "bundle.json").write_text(json.dumps(bundle))
  return home


def call(home, out, *more):
  argv = [str(home), "--cfg", "1.75", "--batch", "8", "--out", str(out), *more]
  return imagenet.main(argv)


def read(out):
  return np.concatenate(list(samples.read(out, 64)))


def test_classes_in_turn_and_after_a_kill(home, tmp_path, monkeypatch, capsys):
  assert call(home, tmp_path / "one.npz", "--each", "2") == 0
  whole = read(tmp_path / "one.npz")
  assert whole.shape == (2 * CLASSES, SIDE, SIDE, 3)
  assert len({image.tobytes() for image in whole}) == 2 * CLASSES
  assert json.loads((tmp_path / "one.json").read_text())["count"] == 2 * CLASSES
  assert not (tmp_path / "one.drawing").exists()

  fill = imagenet.fill

  def killed(file, draw, *how):
    part = whole.tobytes()[: 8 * SIDE * SIDE * 3 + 5]  # eight pictures, and some of the next
    file.write_bytes(part)
    raise OSError("killed")

  monkeypatch.setattr(imagenet, "fill", killed)
  assert call(home, tmp_path / "two.npz", "--each", "2") == 2
  drawn = []

  def counted(file, draw, *how):
    fill(file, lambda numbers: drawn.extend(numbers) or draw(numbers), *how)

  monkeypatch.setattr(imagenet, "fill", counted)
  assert call(home, tmp_path / "two.npz", "--each", "2") == 2  # it is there already
  assert call(home, tmp_path / "two.npz", "--each", "2", "--resume", "--top_k", "5") == 2
  assert "sampler.top_k was 0, and is 5" in capsys.readouterr().err
  assert call(home, tmp_path / "two.npz", "--each", "2", "--resume") == 0
  assert drawn == list(range(8, 14))
  np.testing.assert_array_equal(read(tmp_path / "two.npz"), whole)


def test_pictures_are_drawn_again(tmp_path):
  class Pipe:
    bundle = {"preprocessing": {"canvas": SIDE}}

    def encode(self, images, scale):
      assert scale == 1
      return np.stack([image[:, 0, 0] for image in images])

    def draw(self, codes, seeds, guidance_scale):
      assert guidance_scale == 10 and len(set(seeds)) == len(codes)
      return np.broadcast_to(codes[:, :, None, None], (len(codes), SIDE, SIDE, 3)).copy()

  rng = np.random.default_rng(0)
  source = [{"images": [rng.integers(0, 256, (9, 9 + i, 3), np.uint8)]} for i in range(5)]
  draw = imagenet.of_pictures(Pipe(), source, {"guidance_scale": 10})
  imagenet.fill(tmp_path / "raw", draw, 5, SIDE, 2, lambda text: None)
  imagenet.pack(tmp_path / "raw", tmp_path / "out.npz", 5, SIDE)
  wanted = np.stack([imagenet.square(x["images"][0], SIDE)[:, 0, 0] for x in source])
  np.testing.assert_array_equal(read(tmp_path / "out.npz")[:, :, 3, 1], wanted)


@pytest.mark.parametrize("size, to", [(24, 16), (8, 6), (5, 9)])
def test_bicubic_is_that_of_pytorch(size, to):
  x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
  like = torch.tensor(x).permute(0, 3, 1, 2)
  want = torch.nn.functional.interpolate(like, (to, to), mode="bicubic")
  np.testing.assert_allclose(imagenet.bicubic(x, to), want.permute(0, 2, 3, 1), atol=1e-5)


def test_squares_of_large_pictures_are_averaged_first():
  image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
  halved = np.asarray(Image.fromarray(image).resize((32, 20), Image.Resampling.BOX))
  halved = np.asarray(Image.fromarray(halved).resize((16, 10), Image.Resampling.BOX))
  np.testing.assert_array_equal(imagenet.square(image, 10), halved[:, 3:13])
  np.testing.assert_array_equal(imagenet.square(image[:, :40], 40), image[:, :40])


@pytest.mark.parametrize(
  "more, said",
  [
    (("--each", "0"), "--each must be at least 1"),
    (("--pictures", "/nowhere"), "the pictures /nowhere cannot be read"),
    (("--out", "x.json"), "must end in .npz"),
  ],
)
def test_bad_input_is_one_sentence(home, tmp_path, capsys, more, said):
  assert call(home, tmp_path / "x.npz", *more) == 2
  err = capsys.readouterr().err
  assert said in err and err.count("\n") == 1
