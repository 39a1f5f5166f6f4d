"""A packed row costs what its examples cost alone: nothing is seen across segments."""

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from tarjax.data.packing import fill_row
from tarjax.tasks import make_task

LENGTH = 40


def loss_of(loss, params, examples):
  """Sum of the losses of one row."""
  row = {k: v[None] for k, v in fill_row(examples, LENGTH, 0).items()}
  value, metrics = loss(params, row)
  count = float(metrics["counts"]["loss"])
  assert count == sum((labels[1:] >= 0).sum() for _, labels in examples)
  return float(value) * count


def test_a_packed_row_is_the_sum_of_its_examples():
  model = dict(vocab=64, width=16, depth=2, heads=4, kv_heads=2, head_dim=8, mlp=32)
  words = dict(text_rows=40, codes=16)
  task = make_task(ConfigDict(dict(task="mllm", model=model, words=words, loss_chunk=16)))
  params = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0)))
  loss = jax.jit(lambda params, row: task.loss(params, {}, row, None, train=True))
  params = jax.tree.map(lambda x: 5 * x, params)  # far from the uniform distribution
  rng = np.random.default_rng(0)
  examples = []
  for length in (7, 13, 11):
    tokens = rng.integers(0, 61, length).astype(np.int32)
    examples.append((tokens, np.where(rng.random(length) < 0.6, tokens, -100).astype(np.int32)))
  alone = [loss_of(loss, params, [example]) for example in examples]
  np.testing.assert_allclose(loss_of(loss, params, examples), sum(alone), rtol=1e-5)
  turned = loss_of(loss, params, examples[::-1])  # the order within a row changes nothing either
  np.testing.assert_allclose(turned, sum(alone), rtol=1e-5)
