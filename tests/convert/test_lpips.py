"""LPIPS's two published files, or one with both, into a run, and what is scored with it."""

import json

import numpy as np
import pytest
import torch

from tarjax import checkpoint
from tarjax.convert.rules import flatten
from tarjax.evals import pictures, reconstruction, samples
from tests import perceptual
from tests.convert import checkpoints as make

WIDTHS = (4, 6, 8, 8, 10)


@pytest.fixture(scope="module")
def original():
  return perceptual.make_lpips(WIDTHS)


def save(original, folder, change=lambda vgg, lins: None):
  """The two files, after `change` of their state dicts."""
  vgg, lins = perceptual.lpips_files(original)
  change(vgg, lins)
  paths = folder / "vgg16-397923af.pth", folder / "vgg.pth"
  for path, sd in zip(paths, (vgg, lins), strict=True):
    torch.save(sd, path)
  return paths


def whole(original):
  """The state dict of a whole `lpips.LPIPS`, which holds the weights of the channels twice."""
  vgg, lins = perceptual.lpips_files(original)
  ends = (4, 9, 16, 23, 30)
  sd = {k.replace("lin", "lins.", 1): v for k, v in lins.items()} | lins
  sd["scaling_layer.shift"] = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
  sd["scaling_layer.scale"] = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
  for name, value in vgg.items():
    part, number, leaf = name.split(".")
    if part == "features":
      stage = 1 + next(i for i, end in enumerate(ends) if int(number) < end)
      sd[f"net.slice{stage}.{number}.{leaf}"] = value
  return sd


def test_two_files(original, tmp_path):
  assert make.run("import", *save(original, tmp_path), "--to", tmp_path / "run") == 0
  got = flatten(checkpoint.load(str(tmp_path / "run")))
  make.same(got, {k: np.asarray(v) for k, v in flatten(perceptual.lpips_params(original)).items()})
  record = json.loads((tmp_path / "run" / "provenance.json").read_text())
  assert sorted(record["files"]) == ["vgg.pth", "vgg16-397923af.pth"]
  assert make.run("export", tmp_path / "run", "--to", tmp_path / "again.pth") == 0
  vgg, lins = perceptual.lpips_files(original)
  del vgg["classifier.6.bias"]
  make.same(
    make.tensors_of(tmp_path / "again.pth"), {k: v.numpy() for k, v in (vgg | lins).items()}
  )
  assert make.run("import", tmp_path / "again.pth", "--to", tmp_path / "third") == 0


def test_one_file_of_all(original, tmp_path):
  torch.save(whole(original), tmp_path / "lpips.pth")
  assert make.run("import", tmp_path / "lpips.pth", "--to", tmp_path / "run") == 0
  got = flatten(checkpoint.load(str(tmp_path / "run")))
  make.same(got, {k: np.asarray(v) for k, v in flatten(perceptual.lpips_params(original)).items()})


def put(name, value, vgg=True):
  return lambda *parts: parts[0 if vgg else 1].update({name: value})


def pop(name, vgg=True):
  return lambda *parts: parts[0 if vgg else 1].pop(name)


# fmt: off
WRONG = {
    "a layer too few": (pop("features.12.bias"), "vgg/stage2_conv1/bias"),
    "a layer too many": (put("features.30.weight", torch.zeros(2)), "features.30.weight"),
    "a wrong shape": (put("features.12.bias", torch.zeros(7)), "(7,)"),
    "weights of another network": (
        put("lin2.model.1.weight", torch.zeros(1, 384, 1, 1), False), "(384,) in the checkpoint"),
    "channels too few": (pop("lin3.model.1.weight", False), "weight3 (8,): filled by no tensor"),
    "six weights": (
        put("lin5.model.1.weight", torch.zeros(1, 4, 1, 1), False), "lin5.model.1.weight"),
    "the same twice": (put("features.0.bias", torch.zeros(4), False), "features.0.bias is also in"),
}
# fmt: on


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_named(original, what, tmp_path, capsys):
  change, said = WRONG[what]
  paths = save(original, tmp_path, change)
  assert make.run("import", *paths, "--to", tmp_path / "run") == 2
  assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_one_file_of_two_and_another_scaling(original, tmp_path, capsys):
  for path, said in zip(save(original, tmp_path), ("VGG16 alone", "the channels"), strict=True):
    assert make.run("import", path, "--to", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert said in err and "give both files" in err
  sd = whole(original)
  sd["scaling_layer.scale"] = torch.ones(1, 3, 1, 1)
  torch.save(sd, tmp_path / "lpips.pth")
  assert make.run("import", tmp_path / "lpips.pth", "--to", tmp_path / "run") == 2
  assert "scaling_layer.scale is [1.0, 1.0, 1.0]" in capsys.readouterr().err


def test_reconstructions_are_scored(original, tmp_path, capsys):
  rng = np.random.default_rng(0)
  a = rng.integers(0, 256, (5, 20, 18, 3), np.uint8)
  b = np.clip(a.astype(int) + rng.integers(-60, 61, a.shape), 0, 255).astype(np.uint8)
  for name, images in (("rec", b), ("all", a), ("few", a[:3])):
    with samples.writing(tmp_path / f"{name}.npz", images.shape) as write:
      write(images)
  paths = [tmp_path / name for name in ("rec.npz", "all.npz")]
  assert make.run("import", *save(original, tmp_path), "--to", tmp_path / "lpips") == 0
  argv = [*map(str, paths), f"--out={tmp_path / 'out.json'}", "--batch=2"]
  assert reconstruction.main([*argv, f"--lpips={tmp_path / 'lpips'}"]) == 0
  found = json.loads((tmp_path / "out.json").read_text())
  x, y = (torch.tensor(i.transpose(0, 3, 1, 2) / 127.5 - 1, dtype=torch.float32) for i in (a, b))
  assert found["scores"]["lpips"] == pytest.approx(original(x, y).mean().item(), rel=1e-5)
  assert found["scores"]["psnr"] == pytest.approx(pictures.psnr(a, b).mean())
  assert found["scores"]["ssim"] == pytest.approx(pictures.ssim(a, b).mean())
  assert found["pictures"] == 5
  assert reconstruction.main([str(tmp_path / "few.npz"), *argv[1:]]) == 2
  assert "not of the same pictures" in capsys.readouterr().err
  assert reconstruction.main([*argv, f"--lpips={tmp_path}"]) == 2
  assert "is not a run" in capsys.readouterr().err
