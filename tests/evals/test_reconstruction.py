"""Distances and use of codes on a pipeline that blurs, whatever the batches."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_paper
from PIL import Image

from tarjax import evaluate
from tarjax.config import UserError
from tarjax.evals import pictures, reconstruction

SIDE, COUNT = 12, 10


class Pipe:
  """Stands for `TarPipeline`: adds noise of a picture's own, and of its seed where it draws."""

  codes, dif = 16, None
  bundle = {"preprocessing": {"canvas": SIDE}}

  def __init__(self, *parts):
    self.vqvae = SimpleNamespace(config=SimpleNamespace(codes=8)) if "vqvae" in parts else None
    self.ta_tok, self.ar_dtok = "ta_tok" in parts, "ar_dtok" in parts

  def noisy(self, image, seed):
    noise = np.random.default_rng(seed).integers(0, 30, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)

  def reconstruct_vqvae(self, images):
    return np.stack([self.noisy(image, int(image.sum())) for image in images])

  def encode_vqvae(self, images):
    return images[:, ::6, ::6, 0].astype(int) % 8

  def encode(self, images, scale):
    return images[:, ::6, 0, 0].astype(int) % (4 * scale)

  def features(self, images, scale):
    target = images[:, :4, :, 0].astype(float)
    return target + scale * images[:, 4:8, :, 1], target

  def draw(self, codes, seeds):
    return np.stack([self.noisy(np.full((SIDE, SIDE, 3), 99), seed) for seed in seeds])


class Source:
  def __init__(self, *damaged):
    rng = np.random.default_rng(0)
    self.images = [rng.integers(0, 256, (SIDE + i, SIDE, 3), np.uint8) for i in range(COUNT)]
    self.damaged = damaged

  def __len__(self):
    return COUNT

  def __getitem__(self, index):
    return {"images": [] if index in self.damaged else [self.images[index]]}


def test_batches_do_not_matter():
  pipe = Pipe("vqvae", "ta_tok", "ar_dtok")
  whole, parts = (
    dict(reconstruction.Evaluator(Source(), batch=batch).run(pipe)) for batch in (64, 3)
  )
  assert whole == pytest.approx(parts) and len(whole) == 4 + 3 * 5
  images = np.stack([reconstruction.RESIZE["crop"](i, SIDE) for i in Source().images])
  psnr = pictures.psnr(images, pipe.reconstruct_vqvae(images)).mean()
  assert whole["vqvae/psnr"] == pytest.approx(psnr)
  drawn = pipe.draw(None, range(COUNT))
  assert whole["scale2/ssim"] == pytest.approx(pictures.ssim(images, drawn).mean())
  ids = pipe.encode(images, 3).ravel()
  assert whole["ta_tok/scale3/usage"] == len(set(ids)) / 16
  assert whole["ta_tok/scale1/cosine"] == pytest.approx(pictures.cosine(*pipe.features(images, 1)))


def test_components_that_are_not_there_are_not_measured():
  found = dict(reconstruction.Evaluator(Source(), scales=[2]).run(Pipe("ta_tok", "ar_dtok")))
  assert set(found) == {f"ta_tok/scale2/{name}" for name in ("cosine", "usage", "perplexity")}


def test_damaged_records_are_passed_over_and_distances_can_be_added():
  distances = reconstruction.DISTANCES | {"l1": lambda a, b: np.abs(1.0 * a - b).mean((1, 2, 3))}
  evaluator = reconstruction.Evaluator(Source(0, 4), count=6, distances=distances)
  scores = evaluator.score(Pipe("vqvae"))
  assert evaluator.damaged == 2 and scores["vqvae/l1"]["value"] == pytest.approx(14.5, abs=2)
  assert scores["vqvae/l1"]["low"] < scores["vqvae/l1"]["value"] < scores["vqvae/l1"]["high"]
  with pytest.raises(UserError, match="none of 10 records"):
    reconstruction.Evaluator(Source(*range(COUNT))).score(Pipe("vqvae"))


def test_the_verb_on_a_folder_of_pictures(tmp_path):
  """A VQ tokenizer alone is enough of a model; all devices share its work."""
  home = tiny_paper.make_bundle(tmp_path, ("vqvae",))
  out = tmp_path / "scores.json"
  argv = ["--model", str(home), "--tasks", "reconstruction", "--out", str(out), "--batch", "8"]
  argv += ["--data", str(home / "data/pictures"), "--limit", "5"]
  assert evaluate.main(argv, time.time()) == 0
  found = json.loads(out.read_text())
  assert set(found["reconstruction"]["scores"]) == {
    f"vqvae/{name}" for name in ("psnr", "ssim", "usage", "perplexity")
  }
  assert found["reconstruction"]["pictures"] == 5
  assert set(found["provenance"]["checkpoint"]) == {"vqvae"}
  (home / "data/pictures/0.png").write_bytes(b"no picture")
  Image.new("RGB", (9, 9)).save(home / "data/pictures/1.png")
  assert evaluate.main(argv, time.time()) == 0
  assert json.loads(out.read_text())["reconstruction"]["damaged"] == 1
