import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tarjax import checkpoint, config, saving, sharding
from tarjax.config import UserError
from tarjax.convert.rules import flatten
from tarjax.state import TrainState


def tree(seed=0):
  rng = np.random.default_rng(seed)
  return {
    "vision": {
      "blocks": {"kernel": rng.standard_normal((3, 8, 4)).astype(np.float32)},
      "norm": {"scale": rng.standard_normal(8).astype(np.float32)},
    },
    "bias": rng.standard_normal(()).astype(np.float32),
  }


def put(values, mesh):
  place = sharding.replicated(mesh)
  return jax.tree.map(lambda x: jax.device_put(x, place), values)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with checkpoints of steps 2 and 5 and frozen networks."""
  folder = tmp_path_factory.mktemp("runs") / "a"
  mesh = sharding.make_mesh({"data": -1})
  saver = saving.Saver(folder, keep=2)
  for step in (1, 2, 5):
    params = put(tree(step), mesh)
    saver.save(step, TrainState(step, params, {"m": params}), {"next_step": step})
    assert saver.wait()
  saver.close()
  checkpoint.save_frozen(folder, put(tree(9), mesh))
  config.write_json(folder / "config.json", {"config": {"scales": {"1": 2}, "sizes": [1, 2]}})
  return folder


def same(a, b):
  a, b = flatten(a), flatten(b)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], name)
    assert isinstance(b[name], np.ndarray | np.generic)


@pytest.mark.parametrize(
  "spec, parts",
  [
    ("DIR", ("DIR", None, "")),
    ("../a/b@12", ("../a/b", 12, "")),
    ("../a:vision/blocks", ("../a", None, "vision/blocks")),
    ("../a@3:vision", ("../a", 3, "vision")),
    ("gs://bucket/run@7:x", ("gs://bucket/run", 7, "x")),
    ("gs://bucket/run", ("gs://bucket/run", None, "")),
  ],
)
def test_specs(spec, parts):
  assert checkpoint.parse_spec(spec) == parts


def test_load(run):
  same(tree(5), checkpoint.load(str(run)))
  same(tree(2), checkpoint.load("a@2", run.parent))
  same(tree(5)["vision"], checkpoint.load("../a:vision", run))
  same(tree(2)["vision"]["norm"], checkpoint.load("../a@2:vision/norm", run))
  found = checkpoint.load("../a:vision/norm/scale", run)
  np.testing.assert_array_equal(found, tree(5)["vision"]["norm"]["scale"])
  same(tree(9), checkpoint.load_frozen(run))
  same(tree(9)["vision"], checkpoint.load("a:vision", run.parent, frozen=True))


@pytest.mark.parametrize(
  "spec, words",
  [
    ("b", "'b'.*no complete checkpoint"),
    ("a@1", r"'a@1'.*it has steps \[2, 5\]"),
    ("a:text", r"has no 'text': there is \['bias', 'vision'\]"),
    ("a:bias/x", "has no 'x'"),
  ],
)
def test_load_says_what_is_missing(run, spec, words):
  with pytest.raises(UserError, match=words):
    checkpoint.load(spec, run.parent)


def test_frozen_that_is_not_there(run, tmp_path):
  with pytest.raises(UserError, match="frozen does not exist"):
    checkpoint.load_frozen(tmp_path)


def test_read_config(run, tmp_path):
  found = checkpoint.read_config(run)
  assert isinstance(found, ConfigDict)
  assert found.to_dict() == {"scales": {1: 2}, "sizes": (1, 2)}
  with pytest.raises(UserError, match="no config.json"):
    checkpoint.read_config(tmp_path)


def test_a_save_is_of_its_moment(tmp_path):
  """Steps that donate the buffers while the save is being written do not reach it."""
  mesh = sharding.make_mesh({"fsdp": 8})
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = jax.device_put(np.zeros((64, 4096), np.float32), place)
  saver = saving.Saver(tmp_path, keep=10)
  for i in range(1, 9):
    x = step(x)
    saver.save(i, TrainState(i, {"x": x}, {"m": x}), {"next_step": i})
    for _ in range(3):
      x = step(x)
    assert saver.wait()
  saver.close()
  like = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)}
  saver = saving.Saver(tmp_path, keep=10)
  for i in range(1, 9):
    params, opt, meta = saver.restore(i, like, {"m": like["x"]})
    assert meta == {"next_step": i}
    for array in (params["x"], opt["m"]):
      np.testing.assert_array_equal(array, 4 * (i - 1) + 1)
  saver.close()


def test_fill_replaces_exactly_what_is_named(run):
  model = {"encoder": tree(1)["vision"], "head": np.zeros(3, np.float32)}
  new = checkpoint.fill(model, {"encoder": "a:vision"}, [], reader(run))
  same(tree(5)["vision"], new["encoder"])
  assert new["head"] is model["head"]
  whole = checkpoint.fill(tree(0), {"": "a"}, [], reader(run))
  same(tree(5), whole)


def reader(run):
  return lambda spec: checkpoint.load(spec, run.parent)


def test_fill_checks_both_sides(run):
  vision = tree(1)["vision"]
  model = {
    "encoder": {"blocks": {"kernel": vision["blocks"]["kernel"][:, :4]}, "extra": jnp.ones(2)}
  }
  with pytest.raises(UserError) as error:
    checkpoint.fill(model, {"encoder": "a:vision", "hed": "a:bias"}, [], reader(run))
  for words in (
    "encoder/extra (2,): not in a:vision",
    "encoder/norm/scale (8,): left over in a:vision",
    "encoder/blocks/kernel: (3, 8, 4) in a:vision, (3, 4, 4) in the model",
    "hed: no such parameter",
  ):
    assert words in str(error.value)
  allowed = ["encoder/extra", "encoder/norm", "encoder/blocks"]
  new = checkpoint.fill(model, {"encoder": "a:vision"}, allowed, reader(run))
  assert flatten(new).keys() == flatten(model).keys()
  with pytest.raises(UserError):  # a prefix of a name is not a subtree
    checkpoint.fill(model, {"encoder": "a:vision"}, ["encoder/ext", *allowed[1:]], reader(run))


def test_fill_can_leave_the_last_layers_behind(run):
  model = {"teacher": {"blocks": {"kernel": np.zeros((2, 8, 4), np.float32)}}}
  specs, left = {"teacher": "a:vision"}, ["frozen/teacher/norm"]
  with pytest.raises(UserError, match=r"\(3, 8, 4\) in a:vision, \(2, 8, 4\) in the model"):
    checkpoint.fill(model, specs, left, reader(run), "frozen/")
  left += ["frozen/teacher/blocks[2:]"]
  new = checkpoint.fill(model, specs, left, reader(run), "frozen/")
  np.testing.assert_array_equal(
    new["teacher"]["blocks"]["kernel"], tree(5)["vision"]["blocks"]["kernel"][:2]
  )
