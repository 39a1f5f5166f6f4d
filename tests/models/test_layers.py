"""Attention under every mask that broadcasts, against plain loops; products; what is kept."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarjax import sharding
from tarjax.models import layers
from tarjax.models.attention import attend
from tarjax.models.layers import contract
from tarjax.models.qwen2 import Qwen2, Qwen2Config
from tarjax.models.transformer import remat_policy


@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 5, 7), (2, 1, 7), None])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attend(shape, groups):
  rng = np.random.default_rng(0)
  q = rng.normal(size=(2, 5, 4, 3)).astype(np.float32)
  k, v = rng.normal(size=(2, 2, 7, groups, 3)).astype(np.float32)
  mask = None if shape is None else rng.random(shape) < 0.7
  want = np.zeros_like(q)
  for h in range(4):
    g = h // (4 // groups)
    logits = np.einsum("blk,bsk->bls", q[:, :, h], k[:, :, g]) / np.sqrt(3)
    if mask is not None:
      logits = np.where(np.broadcast_to(mask, logits.shape), logits, -1e30)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    want[:, :, h] = weights @ v[:, :, g]
  seen = None if mask is None else jnp.asarray(mask)
  np.testing.assert_allclose(attend(q, k, v, seen), want, atol=1e-5)


@pytest.mark.parametrize(
  "eqn, x, kernel",
  [
    ("bld,df->blf", (2, 3, 4), (4, 5)),
    ("bld,dhk->blhk", (2, 3, 4), (4, 2, 5)),
    ("blhk,hkd->bld", (2, 3, 2, 5), (2, 5, 4)),
    ("bypxqc,pqcd->byxd", (2, 3, 2, 3, 2, 4), (2, 2, 4, 5)),
  ],
)
def test_contract_is_the_einsum(eqn, x, kernel):
  one, two = jax.random.split(jax.random.key(0))
  x, kernel = jax.random.normal(one, x), jax.random.normal(two, kernel)
  want = np.einsum(eqn, np.asarray(x, np.float64), np.asarray(kernel, np.float64))
  np.testing.assert_allclose(contract(eqn, x, kernel), want, atol=1e-5)


REMATS = ("none", "full", "attn", "attn,qkv,resid", "attn,qkv,resid,gate,up", "dots_saveable")


def test_remat_policies_change_what_is_kept_and_no_gradient():
  ids = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 6)))

  def run(remat):
    model = Qwen2(
      Qwen2Config(32, 16, 2, heads=2, kv_heads=1, head_dim=8, mlp=32, remat=remat, tied=True)
    )
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), ids))

    def loss(p):
      hidden, _ = model.apply(p, ids)
      return jnp.square(hidden * jnp.arange(16)).mean()

    products = str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")
    return products, jax.jit(jax.grad(loss))(params)

  found = {remat: run(remat) for remat in REMATS}
  for remat in REMATS[1:]:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      found[remat][1],
      found["none"][1],
    )
  products = [found[remat][0] for remat in ("full", "attn", "attn,qkv,resid", REMATS[4])]
  assert products == sorted(products, reverse=True) and len(set(products)) == 4
  assert found["dots_saveable"][0] == found["none"][0] < products[-1] + 1


@pytest.mark.parametrize("remat", ["atn", "attn,ffn", ""])
def test_an_unknown_policy_is_refused(remat):
  with pytest.raises(ValueError, match="is none, full, names out of attn,qkv,resid,gate,up"):
    remat_policy(remat)


@pytest.mark.parametrize("sizes", [None, {"data": 4, "fsdp": 2}, {"fsdp": 2, "model": 4}])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_words_gradient_is_summed_in_float32(sizes, dtype):
  """Word 3 comes 4,096 times: a sum in bfloat16 would stop growing at 256 times one value."""
  ids = np.full((8, 600), 3, np.int32)
  ids.reshape(-1)[4096:] = np.random.default_rng(0).integers(4, 48, 8 * 600 - 4096)
  rng = np.random.default_rng(1)
  g = (1 + rng.random((8, 600, 16))).astype(jnp.bfloat16)  # what comes back is of the dtype
  net: Any = layers.Embed(48, 16, dtype)
  table = jnp.asarray(rng.normal(size=(48, 16)), jnp.float32)

  def run(table, ids, g):
    loss = lambda t: (net.apply({"params": {"embedding": t}}, ids) * g).sum()  # noqa: E731
    return jax.grad(loss)(table)

  want = np.zeros((48, 16))
  np.add.at(want, ids, np.asarray(g, np.float64))
  if sizes is None:
    got = jax.jit(run)(table, ids, jnp.asarray(g, dtype))
  else:
    mesh = sharding.make_mesh(sizes)
    rows = sharding.batch_sharding(mesh)
    words = jax.NamedSharding(mesh, jax.P(("model", "fsdp")))
    with jax.set_mesh(mesh):
      step = jax.jit(run, in_shardings=(words, rows, rows), out_shardings=words)
      got = step(table, ids, np.asarray(g, dtype))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, rtol=1e-5)
