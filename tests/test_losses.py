"""Losses against the same formulas in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tarjax import losses, sharding


def rand(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(got, want, tol=1e-6):
  np.testing.assert_allclose(np.asarray(got), want.numpy(), rtol=tol, atol=tol)


def test_mse():
  a, b = rand(3, 5), rand(3, 5, seed=1)
  close(losses.mse(jnp.asarray(a), jnp.asarray(b)), F.mse_loss(torch.tensor(a), torch.tensor(b)))


def test_cosine_loss_per_token():
  a, b = rand(2, 4, 16), rand(2, 4, 16, seed=1)
  want = 1 - F.cosine_similarity(torch.tensor(a), torch.tensor(b), dim=-1, eps=1e-8)
  got = losses.cosine_loss(jnp.asarray(a), jnp.asarray(b))
  assert got.shape == (2, 4)
  close(got, want)


def test_cosine_loss_at_zero_has_a_finite_gradient():
  value, grad = jax.value_and_grad(lambda x: losses.cosine_loss(x, jnp.ones(4)))(jnp.zeros(4))
  assert value == 1 and np.isfinite(grad).all()


def test_sigmoid_loss():
  image, text = rand(5, 8), rand(5, 8, seed=1)
  image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
  scale, bias = np.float32(2.3), np.float32(-1.7)
  logits = torch.tensor(text) @ torch.tensor(image).T * np.exp(scale) + bias
  want = -F.logsigmoid(logits * (2 * torch.eye(5) - 1)).sum(-1).mean()
  close(losses.sigmoid_loss(*map(jnp.asarray, (image, text, scale, bias))), want)


def tokens(b=3, l=7, v=11):
  labels = np.random.default_rng(2).integers(0, v, (b, l)).astype(np.int32)
  labels[0, :3] = losses.IGNORED
  labels[2, 5] = losses.IGNORED
  return labels


def test_masked_cross_entropy_skips_ignored_labels():
  logits, labels = rand(3, 7, 11), tokens()
  total, count = losses.masked_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
  flat = torch.tensor(logits).reshape(-1, 11), torch.tensor(labels).long().reshape(-1)
  assert count == (labels >= 0).sum() == 17
  close(total / count, F.cross_entropy(*flat))


def test_masked_cross_entropy_weights():
  logits, labels, weights = rand(3, 7, 11), tokens(), np.abs(rand(3, 7, seed=3))
  total, count = losses.masked_cross_entropy(*map(jnp.asarray, (logits, labels, weights)))
  flat = torch.tensor(logits).reshape(-1, 11), torch.tensor(labels).long().reshape(-1)
  each = F.cross_entropy(*flat, reduction="none").reshape(3, 7)
  close(total, (each * torch.tensor(weights)).sum(), 1e-5)
  close(count, torch.tensor(weights)[torch.tensor(labels) >= 0].sum())


@pytest.mark.parametrize("chunk", [1, 3, 7, 10])
def test_chunked_cross_entropy_and_its_gradients(chunk):
  hidden, table, labels = rand(3, 7, 6), rand(11, 6, seed=1), tokens()
  image = np.random.default_rng(4).random((3, 7)) < 0.5

  def chunked(hidden, table):
    masks = {"image": jnp.asarray(image)}
    total, count, parts = losses.chunked_cross_entropy(
      hidden, table, jnp.asarray(labels), chunk, masks=masks
    )
    return total / count, parts

  (value, parts), grads = jax.value_and_grad(chunked, (0, 1), has_aux=True)(
    jnp.asarray(hidden), jnp.asarray(table)
  )
  h, t = (torch.tensor(x, requires_grad=True) for x in (hidden, table))
  target = torch.tensor(labels).long().reshape(-1)
  want = F.cross_entropy((h @ t.T).reshape(-1, 11), target)
  want.backward()
  close(value, want.detach())
  assert h.grad is not None and t.grad is not None
  close(grads[0], h.grad)
  close(grads[1], t.grad)
  each = F.cross_entropy((h @ t.T).detach().reshape(-1, 11), target, reduction="none")
  close(parts["image"][0], each.reshape(3, 7)[torch.tensor(image)].sum(), 1e-5)
  assert parts["image"][1] == (image & (labels >= 0)).sum()


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "model": 2}])
def test_chunked_cross_entropy_over_devices_is_that_of_one(sizes):
  """Vocabulary-parallel, with padding rows that are no words, and another mean than 1."""
  rng = np.random.default_rng(0)
  hidden, table = rand(8, 6, 4), rand(24, 4, seed=1)
  labels = rng.integers(0, 21, (8, 6)).astype(np.int32)
  labels[rng.random((8, 6)) < 0.3] = losses.IGNORED
  image = rng.random((8, 6)) < 0.5

  def loss(hidden, table):
    args = (hidden, table, jnp.asarray(labels), 4, 21)
    total, count, parts = losses.chunked_cross_entropy(*args, {"image": jnp.asarray(image)})
    return 3 * total / count, parts

  run = jax.value_and_grad(loss, (0, 1), has_aux=True)
  want = jax.jit(run)(hidden, table)
  mesh = sharding.make_mesh(sizes)
  with jax.set_mesh(mesh):
    rows = sharding.batch_sharding(mesh)
    words = jax.NamedSharding(mesh, jax.P(("model", "fsdp")))
    got = jax.jit(run, in_shardings=(rows, words), out_shardings=None)(hidden, table)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
  h, t = (torch.tensor(x, requires_grad=True) for x in (hidden, table))
  target = torch.tensor(labels).long().reshape(-1)
  (3 * F.cross_entropy((h @ t[:21].T).reshape(-1, 21), target)).backward()
  assert h.grad is not None and t.grad is not None
  close(got[1][0], h.grad)
  close(got[1][1], t.grad)


def test_one_device_computes_no_logits_of_unlabelled_chunks():
  """Whatever stands at positions without a label reaches nothing, not even as zero times it."""
  hidden, table, labels = rand(3, 8, 6), rand(11, 6, seed=1), np.full((3, 8), losses.IGNORED)
  labels[[0, 0, 1, 2, 2, 2], [1, 4, 7, 0, 3, 6]] = [3, 1, 4, 1, 5, 9]  # two chunks of eight

  def loss(hidden, table):
    return losses.chunked_cross_entropy(hidden, table, jnp.asarray(labels), 1)[0]

  run = jax.jit(jax.value_and_grad(loss, (0, 1)))
  want = run(jnp.asarray(hidden), jnp.asarray(table))
  got = run(jnp.asarray(np.where((labels < 0)[..., None], np.nan, hidden)), jnp.asarray(table))
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert (want[1][0][labels < 0] == 0).all() and np.abs(want[1][0][labels >= 0]).min() > 0


def test_the_heads_gradient_is_reduced_once():
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
  hidden, labels = jnp.zeros((8, 16, 4)), jnp.zeros((8, 16), jnp.int32)

  def loss(table):
    return losses.chunked_cross_entropy(hidden, table, labels, 4)[0]

  with jax.set_mesh(mesh):
    text = jax.jit(jax.grad(loss)).lower(jnp.zeros((1000, 4))).as_text()
  assert text.count("stablehlo.reduce_scatter") == 1
  assert text.count("stablehlo.all_gather") == 1  # of the table, before the loop over chunks


def test_chunked_cross_entropy_never_holds_all_logits():
  hidden, labels = jnp.zeros((2, 64, 4)), jnp.zeros((2, 64), jnp.int32)

  def loss(table):
    total, _, _ = losses.chunked_cross_entropy(hidden, table, labels, 8)
    return total

  text = jax.jit(jax.grad(loss)).lower(jnp.zeros((1000, 4))).as_text()
  assert "tensor<2x8x1000xf32>" in text
  assert "tensor<2x64x1000xf32>" not in text and "tensor<8x2x8x1000xf32>" not in text


def pairs(b=16, d=8):
  image, text = rand(b, d), rand(b, d, seed=1)
  return [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text)]


def test_contrastive_loss():
  image, text = pairs()
  logits = 7 * torch.tensor(image) @ torch.tensor(text).T
  right = torch.arange(16)
  want = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
  close(losses.contrastive_loss(jnp.asarray(image), jnp.asarray(text), jnp.float32(7)), want)


def test_contrastive_loss_over_eight_devices_is_that_of_one():
  """Every picture meets the texts of all devices; so do the gradients."""
  run = jax.value_and_grad(losses.contrastive_loss, (0, 1, 2))
  arguments = (*pairs(), np.float32(7))
  value, grads = jax.jit(run)(*arguments)
  mesh = sharding.make_mesh({"data": 4, "fsdp": 2})
  places = (*[sharding.batch_sharding(mesh)] * 2, sharding.replicated(mesh))
  with jax.set_mesh(mesh):
    split = [jax.device_put(x, place) for x, place in zip(arguments, places, strict=True)]
    assert split[0].addressable_shards[0].data.shape == (2, 8)
    far, sharded = jax.jit(run)(*split)
  np.testing.assert_allclose(far, value, rtol=1e-6)
  for a, b in zip(sharded, grads, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  apart = [run(*(x[i : i + 2] for x in arguments[:2]), arguments[2])[0] for i in range(0, 16, 2)]
  assert abs(np.mean(apart) - value) > 0.1  # what each device would make of its own pairs
