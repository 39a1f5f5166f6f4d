"""The kernels against plain products, values and gradients, on every kind of attention here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarjax.models import attention
from tarjax.models.transformer import remat_policy


def draw(b=2, l=200, s=200, h=4, g=2, k=16):
  rng = np.random.default_rng(0)
  shapes = ((b, l, h, k), (b, s, g, k), (b, s, g, k))
  return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def packed(b=2, l=200):
  ids = np.repeat([1, 2, 3], [90, 60, l - 150])
  return jnp.asarray(np.stack([ids, np.where(ids == 3, 0, ids)]), jnp.int32)


@pytest.mark.parametrize(
  "lengths, causal, segments",
  [((200, 200), True, True), ((200, 200), True, False), ((200, 200), False, True)]
  + [((200, 200), False, False), ((130, 300), False, False)]
  + [((256, 256), False, False), ((128, 384), False, False)],  # nothing is padded
)
def test_splash_is_the_plain_products(lengths, causal, segments):
  q, k, v = draw(l=lengths[0], s=lengths[1])
  ids = packed() if segments else None
  seen = jnp.ones(q.shape[:2], bool) if ids is None else ids > 0  # padding rows are unspecified

  def total(attend):
    def loss(q, k, v):
      y = jnp.where(seen[..., None, None], attend(q, k, v), 0)
      return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))

  with jax.default_matmul_precision("highest"):
    (_, got), grads = total(
      lambda *x: attention.splash(*x, causal=causal, segments=ids, interpret=True)
    )(q, k, v)
    (_, want), wants = total(lambda *x: attention.attend(*x, causal=causal, segments=ids))(q, k, v)
  np.testing.assert_allclose(got, want, atol=2e-5)
  for grad, reference in zip(grads, wants, strict=True):
    np.testing.assert_allclose(grad, reference, atol=2e-4)


def test_segments_are_the_mask_they_stand_for():
  q, k, v = draw()
  want = attention.attend(q, k, v, attention.causal_mask(packed()))
  got = attention.attend(q, k, v, causal=True, segments=packed())
  seen = np.asarray(packed() > 0)
  np.testing.assert_allclose(np.asarray(got)[seen], np.asarray(want)[seen], atol=1e-6)


@pytest.mark.parametrize("length", [1, 63, 128, 201, 1090])
def test_strips_of_a_causal_product_are_the_whole(length):
  q, k, v = draw(l=length, s=length)
  mask = attention.causal_mask(jnp.ones((1, length), jnp.int32))

  def total(attend):
    return jax.jit(jax.value_and_grad(lambda *x: jnp.square(attend(*x, mask)).sum(), (0, 1, 2)))

  got, want = total(attention.lower_half)(q, k, v), total(attention.plain)(q, k, v)
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masks", [0, 1, 2])
@pytest.mark.parametrize("lengths", [(40, 40), (30, 70)])
def test_attention_head_by_head_is_the_whole(monkeypatch, lengths, masks):
  q, k, v = draw(l=lengths[0], s=lengths[1])
  mask = np.random.default_rng(1).random((masks, *lengths)) < 0.7 if masks else None

  def total():  # of a new function: nothing that was traced before is taken
    def values(*x):
      return attention.attend(*x, mask)

    grads = jax.jit(jax.value_and_grad(lambda *x: jnp.square(values(*x)).sum(), (0, 1, 2)))
    return grads(q, k, v), "scan[" in str(jax.make_jaxpr(values)(q, k, v))

  want, loops = total()
  assert not loops
  monkeypatch.setattr(attention, "LARGE", 4 * 2 * lengths[0] * lengths[1] - 1)
  got, loops = total()
  assert loops
  with jax.set_mesh(jax.make_mesh((2,), ("data",))):  # rows lie on several devices
    assert not attention.is_large(q, k)
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "length, padded",
  [(81, (128, 128)), (729, (768, 768)), (1752, (1792, 896)), (2048, (2048, 1024))]
  + [(4824, (5120, 1024))],
)
def test_blocks_divide_the_padded_length(length, padded):
  assert attention.blocks(length) == padded


def test_rotation_as_a_product_is_the_rotation(monkeypatch):
  x = draw(k=16)[0]
  table = attention.rotary_table(jnp.arange(200)[None], 16, 1e4)
  want = attention.rotate(x, table)
  monkeypatch.setattr(attention, "platform", lambda: "tpu")
  np.testing.assert_allclose(attention.rotate(x, table), want, atol=1e-6)


def test_the_kernel_is_taken_on_tpu_where_it_fits(monkeypatch):
  taken = []
  monkeypatch.setattr(attention, "platform", lambda: "tpu")
  monkeypatch.setattr(attention, "splash", lambda *x: taken.append(x[0].shape) or x[0])
  q, k, v = draw()
  attention.attend(q, k, v, causal=True)
  attention.attend(q, k, v, jnp.ones((1, 200, 200), bool))  # a mask is an array
  attention.attend(*draw(l=1), causal=False)  # decoding
  assert taken == [q.shape]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", ["", "segments", "mask", "row"])
@pytest.mark.parametrize("length", [200, 199])
def test_what_cudnn_is_asked_for_is_the_plain_products(monkeypatch, causal, masked, length):
  """Its own interface on another kernel takes its place: what it must see is the same."""
  q, k, v = (x.astype(jnp.bfloat16) for x in draw(l=length, s=length))
  ids = packed(l=length)
  mask = {"mask": attention.same_segment(ids), "row": (ids == 1)[:, None]}.get(masked)
  more = {"segments": ids} if masked == "segments" else {"mask": mask}
  want = attention.attend(q, k, v, causal=causal, **more)
  asked, attend = [], jax.nn.dot_product_attention

  def elsewhere(*args, implementation, **options):
    asked.append(implementation)
    return attend(*args, **options)

  monkeypatch.setattr(attention, "platform", lambda: "gpu")
  monkeypatch.setattr(jax.nn, "dot_product_attention", elsewhere)
  got = attention.attend(q, k, v, causal=causal, **more)
  assert asked == [] if masked and length % 2 else asked == ["cudnn"]
  seen = (ids > 0)[..., None, None]
  np.testing.assert_allclose(
    jnp.where(seen, got, 0).astype(jnp.float32),
    jnp.where(seen, want, 0).astype(jnp.float32),
    atol=0.02,
  )
  attention.attend(*draw(), causal=causal)  # float32 has no fused kernel
  assert len(asked) < 2


@pytest.mark.parametrize("remat, times", [("attn", 1), ("qkv", 2)])
def test_cudnns_forward_is_saved_with_what_its_gradient_reads(monkeypatch, remat, times):
  from jax._src.cudnn import fused_attention_stablehlo as kernel  # which asks for a GPU to trace

  monkeypatch.setattr(kernel, "check_cudnn_version", lambda: 91_000)
  monkeypatch.setattr(kernel, "check_is_flash_attention", lambda *args, **options: None)
  monkeypatch.setattr(attention, "platform", lambda: "gpu")

  def loss(q, k, v):
    return attention.attend(q, k, v, causal=True, segments=packed()).astype(jnp.float32).sum()

  saved = jax.checkpoint(loss, policy=remat_policy(remat), prevent_cse=False)
  q, k, v = (x.astype(jnp.bfloat16) for x in draw())
  trace = str(jax.make_jaxpr(jax.grad(saved))(q, k, v))
  assert trace.count("dot_product_attention_fwd_wrapper[") == times
  assert trace.count("dot_product_attention_bwd_wrapper[") == 1
