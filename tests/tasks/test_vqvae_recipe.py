"""The VQVAE's whole recipe: when the discriminator has its say, what is logged and exported."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from tiny_world import parse, write_run

from tarjax import tasks
from tarjax.config import UserError, claim
from tarjax.convert import __main__ as convert
from tarjax.stage import make_stage
from tests.convert import checkpoints as make

HURRY = {"xla_backend_optimization_level": 0}  # compiling takes most of the time


@pytest.fixture(scope="module")
def begun():
  """(parameters, frozen networks, a batch)."""
  task = tasks.make_task(parse("vqvae:tiny", "."))
  init = jax.jit(lambda key: (task.init(key), task.init_frozen(key)), compiler_options=HURRY)
  images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
  return *nn.meta.unbox(init(jax.random.key(0))), {"image": images}


@pytest.fixture(scope="module")
def gradients(begun):
  """((loss, metrics), gradient) without the discriminator, with it, and with adapted weight."""
  found = []
  for judged, adaptive in ((False, False), (True, False), (True, True)):
    changes = {"model.dtype": "float32", "gan.adaptive": adaptive}
    task = tasks.make_task(parse("vqvae:tiny", ".", **changes))
    loss = functools.partial(task.loss, train=True, judged=judged)
    run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=HURRY)
    found.append(run(*begun, jax.random.key(1)))
  return found


def test_the_discriminator_starts_at_its_update(tmp_path):
  task = tasks.make_task(parse("vqvae:full", tmp_path))
  assert [task.static(step) for step in (0, 19_998)] == [{}, {}]  # updates 1 and 19,999
  assert [task.static(step) for step in (19_999, 400_000)] == [{"judged": True}] * 2
  stage = make_stage(parse("vqvae:full", tmp_path), jax.devices()[:1])
  assert list(stage.shares) == [(("judged", True),), ()]  # the first is what is planned for
  assert stage.shares[()] == pytest.approx(20_000 / 400_365, abs=2e-3)
  assert tasks.make_task(parse("vqvae:mse", tmp_path)).static(30_000) == {}


def test_both_programs_log_the_same_and_differ_in_what_they_train(gradients):
  ((before, logged), early), ((after, said), late), _ = gradients
  assert logged.keys() == said.keys()  # one line of a log may span both
  for name in ("mse", "lpips"):
    np.testing.assert_allclose(logged[name], said[name], rtol=1e-5)
  added = 0.5 * (said["adversarial"] + said["discriminator"])
  np.testing.assert_allclose(after - before, added, rtol=1e-4)
  assert before > logged["mse"] + logged["lpips"] > logged["mse"] > 0 == logged["adversarial"]
  assert not any(np.abs(x).max() for x in jax.tree.leaves(early["discriminator"]))
  assert all(np.abs(x).max() for x in jax.tree.leaves(late["discriminator"]["conv0"]))


def test_the_adapted_weight_is_the_ratio_at_the_last_kernel(gradients):
  """And the gradient is that of the sum it stands for, all the way into the encoder."""
  (_, near), (_, both), ((_, metrics), adapted) = gradients
  unreal = jax.tree.map(lambda a, b: 2 * (a - b), both, near)  # the weight is 0.5
  last = [np.linalg.norm(x["decoder"]["conv_out"]["kernel"]) for x in (near, unreal)]
  np.testing.assert_allclose(metrics["pull"], last[0] / (last[1] + 1e-4), rtol=1e-3)
  for part in ("encoder", "decoder", "quant_conv", "post_quant_conv"):
    pairs = zip(jax.tree.leaves(near[part]), jax.tree.leaves(unreal[part]), strict=True)
    want = [a + 0.5 * metrics["pull"] * b for a, b in pairs]
    size = max(np.abs(x).max() for x in want)
    for a, b in zip(jax.tree.leaves(adapted[part]), want, strict=True):
      np.testing.assert_allclose(a, b, atol=2e-3 * size)
  for a, b in zip(*(jax.tree.leaves(x["discriminator"]) for x in (adapted, both)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_batch_in_parts_is_refused(tmp_path):
  stage = make_stage(parse("vqvae:tiny", tmp_path, accumulate=2))
  with pytest.raises(UserError, match="accumulate=2 would change the loss: config.gan's batch"):
    stage.programs()


def test_a_trained_tokenizer_is_exported_without_its_discriminator(begun, tmp_path):
  params, frozen, _ = begun
  claim(tmp_path / "run", parse("vqvae:tiny", tmp_path / "run"))
  write_run(tmp_path / "run", params, frozen)
  argv = ["export", str(tmp_path / "run"), "--to", str(tmp_path / "vq.pt")]
  assert convert.main(argv) == 0
  names = make.tensors_of(tmp_path / "vq.pt")
  assert "quantize.embedding.weight" in names and not any("norm1.scale" in n for n in names)
