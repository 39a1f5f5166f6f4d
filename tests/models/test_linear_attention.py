"""Linear attention against its quadratic form, convolutions by channel against torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax.sharding import NamedSharding, PartitionSpec

from tarjax.models import linear_attention
from tarjax.models.linear_attention import ChannelConv, linear_attend
from tarjax.sharding import make_mesh
from tests import golden


def test_linear_attention_is_attention_with_relu_weights():
  rng = np.random.default_rng(0)
  q, k, v = (rng.normal(size=(2, n, 3, 4)).astype(np.float32) for n in (5, 7, 7))
  weights = np.einsum("blhk,bshk->bhls", np.maximum(q, 0), np.maximum(k, 0))
  weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-15)
  golden.close(linear_attend(q, k, v), np.einsum("bhls,bshk->blhk", weights, v), 1e-5)


def test_queries_that_see_nothing_give_zero():
  q, kv = -jnp.ones((1, 2, 1, 4)), jnp.ones((1, 3, 1, 4))
  value, grad = jax.value_and_grad(lambda q: linear_attend(q, kv, kv).sum())(q)
  assert value == 0 and np.isfinite(grad).all()


def test_half_precision_stays_half_precision():
  x, kernel = jnp.ones((1, 4, 4, 2), jnp.bfloat16), jnp.ones((3, 3, 1, 2))
  model = ChannelConv(3, bias=False, dtype=jnp.bfloat16)

  def loss(kernel):
    y = model.apply({"params": {"kernel": kernel}}, x)
    assert y.dtype == jnp.bfloat16
    return y.astype(jnp.float32).sum()

  grad = jax.grad(loss)(kernel)
  assert grad.dtype == jnp.float32 and grad[1, 1, 0, 0] == 16 and grad[0, 0, 0, 0] == 9


@pytest.mark.parametrize("size", [3, 5])
def test_channel_convolution_and_its_gradients_are_those_of_torch(size):
  rng = np.random.default_rng(0)
  x, kernel, bias, weight = (
    rng.normal(size=s).astype(np.float32)
    for s in ((2, 6, 5, 4), (size, size, 1, 4), (4,), (2, 6, 5, 4))
  )

  def loss(x, kernel):
    y = ChannelConv(size).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    return (jnp.asarray(y) * weight).sum()

  value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, kernel)
  given = [torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(kernel.transpose(3, 2, 0, 1))]
  for t in given:
    t.requires_grad_()
  y = F.conv2d(*given, torch.tensor(bias), padding=size // 2, groups=4)
  want = (y * torch.tensor(weight.transpose(0, 3, 1, 2))).sum()
  want.backward()
  golden.close(value, want.detach().numpy(), 1e-5)
  for got, t, order in zip(grads, given, [(0, 2, 3, 1), (2, 3, 1, 0)], strict=True):
    assert t.grad is not None
    golden.close(got, t.grad.numpy().transpose(order), 1e-5)


def test_a_kernels_gradient_counts_once_on_a_mesh(monkeypatch):
  """As on TPUs, over an axis of the mesh that cuts no pictures."""
  monkeypatch.setattr(linear_attention, "platform", lambda: "tpu")
  rng = np.random.default_rng(0)
  x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((8, 6, 6, 4), (3, 3, 1, 4)))

  def loss(kernel, x):
    y = ChannelConv(3, bias=False).apply({"params": {"kernel": kernel}}, x)
    return jnp.sin(jnp.asarray(y)).sum()

  want = jax.jit(jax.grad(loss))(kernel, x)
  mesh = make_mesh({"data": 2, "fsdp": 2, "model": 2})
  with jax.set_mesh(mesh):
    rows = jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    whole = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
    golden.close(jax.jit(jax.grad(loss))(whole, rows), np.asarray(want), 1e-5)
