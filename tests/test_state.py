"""The step: batches in parts give the whole batch's gradient, and the state is updated in place."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_stage import Task as FakeTask
from fake_stage import get_config
from ml_collections import ConfigDict

from tarjax import optim, sharding, state
from tarjax.config import UserError
from tarjax.convert.rules import flatten
from tarjax.tasks import make_task

SIZES = {"data": 2, "fsdp": 2, "model": 2}


def language_model():
  """A task whose loss is a mean over labelled tokens, and a batch with few of them in some rows."""
  model = dict(vocab=64, width=16, depth=2, heads=2, kv_heads=2, head_dim=8, mlp=32, remat="attn")
  config = dict(task="mllm", model=model, words=dict(text_rows=40, codes=16), loss_chunk=8)
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 61, (16, 24))
  labels = np.where(rng.random((16, 24)) < np.linspace(0, 0.9, 16)[:, None], tokens, -100)
  batch = dict(tokens=tokens, labels=labels, segments=np.ones((16, 24)), positions=tokens * 0)
  batch["positions"] += np.arange(24)
  return make_task(ConfigDict(config)), {k: v.astype(np.int32) for k, v in batch.items()}


def image_tokenizer():
  """A task whose loss is a mean over pictures, and that reports codes."""
  model = dict(channels=8, multipliers=(1, 2), blocks=1, latent=8, codes=16, groups=4)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 255, (16, 8, 8, 3), np.uint8)
  return make_task(ConfigDict(dict(task="vqvae", model=model))), {"image": images}


@pytest.mark.parametrize("make", [language_model, image_tokenizer])
def test_parts_of_a_batch_give_its_gradient(make):
  task, batch = make()
  mesh = sharding.make_mesh(SIZES)
  with jax.set_mesh(mesh):
    place = jax.device_put(batch, sharding.batch_sharding(mesh))
    boxed = jax.eval_shape(task.init, jax.random.key(0))
    where = sharding.tree_shardings(boxed, mesh)
    params = jax.jit(lambda k: nn.meta.unbox(task.init(k)), out_shardings=where)(jax.random.key(0))

    def gradient(parts):
      def run(params, batch):
        loss = lambda *a: task.loss(*a, train=True)  # noqa: E731
        return state.gradient(loss, params, {}, batch, jax.random.key(1), parts)

      (value, metrics), grads = jax.jit(run)(params, place)
      assert "counts" not in metrics
      return float(value), metrics, flatten(jax.device_get(grads))

    value, metrics, whole = gradient(1)
    for parts in (2, 4):
      other, others, grads = gradient(parts)
      assert other == pytest.approx(value, rel=1e-5)
      assert others.keys() == metrics.keys()
      for name in set(metrics) - {"codes", "psnr"}:  # the mean of logarithms is another one
        np.testing.assert_allclose(others[name], metrics[name], rtol=1e-4, err_msg=name)
      if "codes" in metrics:
        assert sorted(others["codes"].ravel()) == sorted(metrics["codes"].ravel())
      for name, g in whole.items():
        np.testing.assert_allclose(grads[name], g, rtol=1e-3, atol=1e-6, err_msg=name)
        assert grads[name].dtype == np.float32


def test_a_mean_of_means_would_be_wrong():
  """The rows of the language model's batch differ so much that equal weights would show."""
  task, batch = language_model()
  params = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0)))
  loss = jax.jit(lambda batch: task.loss(params, {}, batch, None, train=True)[0])
  values = [float(loss({k: v[i::4] for k, v in batch.items()})) for i in range(4)]
  whole = float(loss(batch))
  assert abs(np.mean(values) - whole) > 1e-4


def test_losses_that_couple_examples_are_refused():
  mesh = sharding.make_mesh(SIZES)
  model = dict(channels=8, multipliers=(1, 2), blocks=1, latent=8, codes=16, groups=4)
  for extra, words in (({"mix": 0.5}, "config.mix"), ({}, "")):
    task = make_task(ConfigDict(dict(task="vqvae", model=model, **extra)))
    tx = optim.make_optimizer(get_config().optim, 10)
    layout = state.make_layout(task, tx, mesh)
    if words:
      with pytest.raises(UserError, match=f"accumulate=2 would change the loss: {words}"):
        state.Programs(task, tx, None, layout, mesh, 2)
    else:
      state.Programs(task, tx, None, layout, mesh, 2)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_state_is_updated_in_place(ema):
  """Every array of the state is donated, and the compiled step writes it where it was."""
  config = get_config()
  with config.unlocked():
    config.optim.ema = ema
  mesh = sharding.make_mesh(SIZES)
  task, tx = FakeTask(config), optim.make_optimizer(config.optim, 10)
  with jax.set_mesh(mesh):
    layout = state.make_layout(task, tx, mesh)
    programs = state.Programs(task, tx, optim.make_schedule(config.optim, 10), layout, mesh)
    step, first = programs(True, {"scale": 1})
    where = sharding.batch_sharding(mesh)
    shapes = {"x": ((16, 4, 8), jnp.float32), "codes": ((16, 4), jnp.int32), "bad": ((16,), bool)}
    batch = {k: jax.ShapeDtypeStruct(*v, sharding=where) for k, v in shapes.items()}
    count = jax.ShapeDtypeStruct((), jnp.int32)
    given = state.TrainState(count, layout.params, layout.opt)
    key = jax.eval_shape(lambda: jax.random.key(0))
    text = step.lower(given, layout.frozen, batch, key).compile().as_text()
  header = text.splitlines()[0]
  assert first and header.count("-alias)") == len(jax.tree.leaves(given))
  copies = 4 if ema else 3  # parameters, two moments, and their average
  kernels = [x for x in jax.tree.leaves(given) if x.shape == (8, 8)]
  assert len(kernels) == copies * 4
