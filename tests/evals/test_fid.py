"""FID and its kin against torch-fidelity and pytorch-fid, whose numbers are in inception.npz.

They come from random weights and pictures, which are made here again from the same seeds; its
scores are torch-fidelity's of random vectors.
"""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import torch
from tensorboardX.proto.graph_pb2 import GraphDef

from tarjax.config import UserError
from tarjax.evals import fid, frechet, inception, inception_weights, samples

GOLDEN = np.load(Path(__file__).parent / "inception.npz")
PICTURES = np.random.default_rng(3).integers(0, 256, (2, 6, 8, 3)).astype(np.uint8)
PICTURES = PICTURES.repeat(10, 1).repeat(10, 2)
NORM = ("weight", "bias", "running_mean", "running_var")


def random_weights() -> dict[str, np.ndarray]:
  """A state dict of the network, as inception.npz was made with."""
  net = inception.Inception()
  tree = nn.meta.unbox(jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3))))
  shapes = {"fc.weight": (1008, 2048)}
  for step in inception.steps():
    ky, kx, i, o = tree["params"][step]["kernel"].shape
    shapes[f"{step}.conv.weight"] = (o, i, ky, kx)
    shapes |= {f"{step}.bn.{part}": (o,) for part in NORM}
  weights = {}
  for name, shape in shapes.items():
    rng = np.random.default_rng(sum(name.encode()) * 7 + len(name))
    if len(shape) == 4:
      x = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    elif len(shape) == 2:
      x = rng.normal(0, 0.05, shape)
    elif name.endswith(("running_var", "bn.weight")):
      x = rng.uniform(0.7, 1.3, shape)
    else:
      x = rng.normal(0, 0.1, shape)
    weights[name] = x.astype(np.float32)
  return weights


@pytest.fixture(scope="module")
def weights():
  return random_weights()


@pytest.fixture(scope="module")
def pth(tmp_path_factory, weights):
  path = tmp_path_factory.mktemp("weights") / "pt_inception.pth"
  torch.save({name: torch.from_numpy(x) for name, x in weights.items()}, path)
  return path


def close(found, expected):
  scale = np.abs(expected).mean()
  np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)


def test_features_are_those_of_torch_fidelity(pth, monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: 2)
  seen = fid.Features(pth, "torch-fidelity", batch=2)([PICTURES])
  close(seen.pool, GOLDEN["pool"])
  close(seen.logits, GOLDEN["logits"])
  close(seen.gaussians["pool"][0], GOLDEN["pool"].mean(0))
  close(seen.gaussians["spatial"][0], GOLDEN["spatial"].mean(0))


def test_features_are_those_of_pytorch_fid(pth, monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: 2)
  close(fid.Features(pth, "pytorch-fid", batch=2)([PICTURES]).pool, GOLDEN["pytorch_fid"])


def test_each_picture_counts_once_on_eight_devices(monkeypatch):
  def features(params, x):
    assert len(x) == 8 and len(x.sharding.device_set) == 8
    means = x[:, 150, 7]  # [b 3]
    return {"pool": means, "spatial": means, "logits": means}

  monkeypatch.setattr(inception, "features", features)
  monkeypatch.setattr(inception_weights, "load", lambda path: {})
  images = np.random.default_rng(0).integers(0, 256, (13, 5, 5, 3)).astype(np.uint8)
  found = fid.Features("", batch=5)([images[:8], images[8:11], images[11:]])
  expected = np.asarray(inception.resized(images, "tensorflow"))[:, 150, 7]
  np.testing.assert_allclose(found.pool, expected, atol=1e-6)
  np.testing.assert_allclose(found.gaussians["pool"][1], np.cov(expected, rowvar=False), atol=1e-6)


def graph(path, weights):
  """The same weights as a frozen TensorFlow graph."""
  made = GraphDef()
  for step in inception.steps():
    for part in ("conv.weight", *(f"bn.{p}" for p in NORM)):
      x = weights[f"{step}.{part}"]
      x = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x
      add(made, inception_weights.graph_name(step, part), x)
  add(made, "softmax/weights", weights["fc.weight"].T)
  path.write_bytes(made.SerializeToString())
  return path


def add(made, name, x):
  node = made.node.add(name=name, op="Const")
  tensor = node.attr["value"].tensor
  for size in x.shape:
    tensor.tensor_shape.dim.add(size=size)
  if x.ndim == 1:
    tensor.float_val.extend(x.tolist())
  else:
    tensor.tensor_content = np.ascontiguousarray(x).tobytes()


def test_both_files_give_the_same_parameters(tmp_path, pth, weights):
  one = inception_weights.load(pth)
  other = inception_weights.load(graph(tmp_path / "classify_image_graph_def.pb", weights))
  assert len(one) == 95 and jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)
  kernel, name = one["Mixed_6a.branch3x3"]["kernel"], "Mixed_6a.branch3x3"
  scale = weights[f"{name}.bn.weight"] / np.sqrt(weights[f"{name}.bn.running_var"] + 1e-3)
  close(kernel[1, 2], (weights[f"{name}.conv.weight"][:, :, 1, 2] * scale[:, None]).T)


@pytest.mark.parametrize(
  "step, name",
  [  # as torch-fidelity's converter pairs them
    ("Conv2d_1a_3x3", "conv"),
    ("Conv2d_4a_3x3", "conv_4"),
    ("Mixed_5b.branch1x1", "mixed/conv"),
    ("Mixed_5c.branch5x5_2", "mixed_1/tower/conv_1"),
    ("Mixed_5d.branch3x3dbl_3", "mixed_2/tower_1/conv_2"),
    ("Mixed_5d.branch_pool", "mixed_2/tower_2/conv"),
    ("Mixed_6a.branch3x3", "mixed_3/conv"),
    ("Mixed_6a.branch3x3dbl_2", "mixed_3/tower/conv_1"),
    ("Mixed_6b.branch7x7_3", "mixed_4/tower/conv_2"),
    ("Mixed_6e.branch7x7dbl_5", "mixed_7/tower_1/conv_4"),
    ("Mixed_7a.branch3x3_2", "mixed_8/tower/conv_1"),
    ("Mixed_7a.branch7x7x3_4", "mixed_8/tower_1/conv_3"),
    ("Mixed_7b.branch3x3_2a", "mixed_9/tower/mixed/conv"),
    ("Mixed_7c.branch3x3dbl_3b", "mixed_10/tower_1/mixed/conv_1"),
    ("Mixed_7c.branch3x3dbl_1", "mixed_10/tower_1/conv"),
  ],
)
def test_names_in_the_graph(step, name):
  assert inception_weights.graph_name(step, "conv.weight") == f"{name}/conv2d_params"
  assert inception_weights.graph_name(step, "bn.bias") == f"{name}/batchnorm/beta"


def test_weights_that_are_none(tmp_path, weights):
  def refused(path):
    with pytest.raises(UserError) as told:
      inception_weights.load(path)
    return str(told.value)

  assert "none.pth do not exist" in refused(tmp_path / "none.pth")
  path = tmp_path / "some.pb"
  path.write_bytes(b"\xff" * 50)
  assert "neither a TensorFlow graph nor" in refused(path)
  path.write_bytes(GraphDef().SerializeToString())
  assert "has no tensor 'softmax/weights'" in refused(path)
  path = tmp_path / "other.pth"
  torch.save({"fc.weight": torch.zeros(1008, 2048)}, path)
  assert "has no tensor 'Conv2d_1a_3x3.conv.weight'" in refused(path)
  path.write_bytes(b"rubbish")
  assert "other.pth" in refused(path)


@pytest.mark.parametrize("side", [299, 64, 400])
def test_pictures_are_resized_as_pytorch_does(side):
  images = np.random.default_rng(0).integers(0, 256, (2, side, 50, 3)).astype(np.uint8)
  x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
  x = torch.nn.functional.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
  expected = (2 * x - 1).permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(inception.resized(images, "pytorch"), expected, atol=2e-5)


def seen(pool, logits=None):
  statistics = frechet.Statistics()
  statistics.add(pool)
  pair = statistics.gaussian()
  return fid.Seen({"pool": pair, "spatial": pair}, pool, pool if logits is None else logits)


def test_scores_are_those_of_torch_fidelity():
  rng = np.random.default_rng(5)
  a = rng.normal(size=(103, 12)).astype(np.float32)
  b = (rng.normal(size=(90, 12)) * 1.2 + 0.3).astype(np.float32)
  logits = (rng.normal(size=(103, 20)) * 3).astype(np.float32)
  found = fid.scores(seen(a, logits), seen(b), "torch-fidelity")
  assert list(found) == ["fid", "inception_score", "precision", "recall"]
  np.testing.assert_allclose(list(found.values()), GOLDEN["scores"], rtol=1e-5)


def test_statistics_of_parts_are_those_of_the_whole():
  x = np.random.default_rng(0).normal(3, 2, (50, 6)).astype(np.float32)
  parts = frechet.Statistics()
  for part in np.split(x, [1, 20, 47]):
    parts.add(part)
  mean, cov = parts.gaussian()
  np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-12)
  np.testing.assert_allclose(cov, np.cov(x.astype(np.float64), rowvar=False), atol=1e-10)
  with pytest.raises(ValueError, match="two pictures, not 0"):
    frechet.Statistics().gaussian()


@pytest.mark.parametrize("count", [100, 5])  # 5 pictures in 8 dimensions: a singular covariance
def test_frechet_distance_is_that_of_the_matrix_root(count):
  rng = np.random.default_rng(0)
  pairs = [(rng.normal(size=8), np.cov(rng.normal(size=(count, 8)), rowvar=False)) for _ in "ab"]
  (m1, s1), (m2, s2) = pairs
  root = np.sqrt(np.maximum(np.linalg.eigvals(s1 @ s2).real, 0)).sum()
  if count > 8:
    root = np.trace(scipy.linalg.sqrtm(s1 @ s2)).real
  expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2) - 2 * root
  assert frechet.frechet(*pairs) == pytest.approx(expected, rel=1e-6)
  assert frechet.frechet(pairs[0], pairs[0]) == pytest.approx(0, abs=1e-6)


def test_inception_score_of_known_classes():
  sure = np.eye(4)[np.arange(40) % 4] * 100
  whole = [np.arange(40)]
  assert frechet.inception_score(sure, whole) == pytest.approx(4)
  assert frechet.inception_score(np.zeros((40, 4)), whole) == pytest.approx(1)
  assert frechet.inception_score(sure, [np.arange(0, 40, 4), whole[0]]) == pytest.approx(2.5)


def test_precision_and_recall_of_sets_far_apart_and_the_same(monkeypatch):
  monkeypatch.setattr(frechet, "BLOCK", 7)  # several blocks, the last one short
  a = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
  for half in (True, False):
    assert frechet.precision_recall(a, a + 100, half) == (0, 0)
    assert frechet.precision_recall(a, a, half) == (1, 1)
  few = np.concatenate([a[:15], a[:15] + 100])
  assert frechet.precision_recall(a, few, half=False)[0] == 0.5


def test_half_distances_are_rounded_where_they_are_finite():
  a = np.full((1, 4), 1.0, np.float32)
  b = np.full((1, 4), 1.01, np.float32)
  assert frechet.distances(a, b, half=False)[0, 0] == pytest.approx(4e-4, rel=0.01)
  assert frechet.distances(a, b, half=True)[0, 0] != pytest.approx(4e-4, rel=0.01)
  far = np.full((1, 4), 300.0, np.float32)
  assert frechet.distances(a, far, half=True)[0, 0] == 4 * 299**2


def test_samples_are_written_and_read_piecemeal(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3)).astype(np.uint8)
  path = tmp_path / "samples.npz"
  with samples.writing(path, images.shape) as write:
    for part in np.split(images, [3, 4]):
      write(part)
      assert not path.exists()
  np.testing.assert_array_equal(np.load(path)["arr_0"], images)
  parts = list(samples.read(path, 4))
  assert [len(p) for p in parts] == [4, 4, 2]
  np.testing.assert_array_equal(np.concatenate(parts), images)
  np.savez_compressed(tmp_path / "ref.npz", images, mu=np.zeros(3), sigma=np.eye(3))
  np.testing.assert_array_equal(np.concatenate(list(samples.read(tmp_path / "ref.npz", 3))), images)
  assert list(samples.gaussians(tmp_path / "ref.npz")) == ["pool"]
  with pytest.raises(ValueError, match="lacks 1 of 10 pictures"):
    with samples.writing(tmp_path / "short.npz", images.shape) as write:
      write(images[:9])
  assert not (tmp_path / "short.npz").exists()


@pytest.mark.parametrize(
  "spoil, said",
  [
    (lambda p: p.unlink(), "does not exist"),
    (lambda p: p.write_bytes(b"PK"), "is not a whole .npz of pictures"),
    (lambda p: p.write_bytes(p.read_bytes()[:-60]), "is not a whole .npz of pictures"),
    (lambda p: np.savez(p, other=np.zeros(3)), "has no arr_0"),
    (lambda p: np.savez(p, np.zeros((2, 4, 4, 3))), "arr_0 is float64[2, 4, 4, 3], not uint8"),
    (lambda p: np.savez(p, np.zeros((2, 3, 4, 4), np.uint8)), "not uint8[n y x 3]"),
  ],
)
def test_the_verb_names_what_is_wrong(tmp_path, capsys, spoil, said):
  path = tmp_path / "samples.npz"
  np.savez(path, np.zeros((4, 4, 4, 3), np.uint8))
  spoil(path)
  argv = [str(path), str(path), "--inception", "none.pth", "--out", str(tmp_path / "fid.json")]
  assert fid.main(argv) == 2
  err = capsys.readouterr().err
  assert said in err and err.count("\n") == 1


def test_the_verb_takes_statistics_that_the_reference_has(tmp_path, monkeypatch, capsys):
  class Features:
    batch = 4

    def __init__(self, weights, like, batch):
      pass

    def __call__(self, batches):
      pool = np.concatenate(list(batches)).mean((1, 2)).astype(np.float32)
      return seen(pool)

  monkeypatch.setattr(fid, "Features", Features)
  images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3)).astype(np.uint8)
  np.savez(tmp_path / "a.npz", images)
  mean, cov = seen(images.mean((1, 2))).gaussians["pool"]
  np.savez(tmp_path / "b.npz", images[:6], mu=mean + 2, sigma=cov)
  (tmp_path / "w.pth").write_text("weights")
  paths = [str(tmp_path / name) for name in ("a.npz", "b.npz", "w.pth", "out.json")]
  assert fid.main([*paths[:2], "--inception", paths[2], "--out", paths[3]]) == 0
  found = json.loads(Path(paths[3]).read_text())
  assert found["scores"]["fid"] == pytest.approx(3 * 2**2)
  assert found["scores"]["precision"] == 1 and found["pictures"]["reference"] == 6
  assert found["provenance"]["statistics"] == ["pool"] and found["provenance"]["like"] == "adm"
  assert "inception_score" in capsys.readouterr().out


def test_adm_takes_the_inception_score_in_order(monkeypatch):
  monkeypatch.setattr(fid, "PART", 4)
  logits = np.repeat(np.eye(3) * 100, 4, axis=0)  # each part of one class
  a = seen(np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32), logits)
  assert fid.scores(a, a)["inception_score"] == pytest.approx(1)
  assert fid.scores(a, a)["sfid"] == pytest.approx(0, abs=1e-9)
