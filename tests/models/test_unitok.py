"""UniTok against its formulas in PyTorch, and against itself: codes, pictures, sizes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tarjax.models.unitok import AttentionProjection, SubCodebooks, UniTok, UniTokConfig, at_most
from tarjax.models.vitamin import GeGlu, MbConv, Vitamin, VitaminConfig, VitaminDecoder

HURRY = {"xla_backend_optimization_level": 0}  # compiling takes most of the time
TEXT = dict(vocab=20, width=16, depth=1, heads=2, mlp=32, length=5)
VITAMIN = dict(image=24, stem=8, widths=(8,), depths=(1,), width=16, depth=2, heads=2, mlp=32)
TOWER = dict(width=16, depth=2, heads=2, mlp=32, image=30, patch=7)
FIELDS = {"text": TEXT, "encoder": VITAMIN, "codes": 32, "codebooks": 2, "code_width": 8}
FIELDS |= {"embed": 12}
DECODER = dict(depth=1, heads=2, mlp=32)
LITE = {"encoder": TOWER, "decoder": DECODER, "codebooks": 1, "projection": "linear"}
CONFIGS = {"vitamin": UniTokConfig(**FIELDS), "lite": UniTokConfig(**{**FIELDS, **LITE})}


def fill(tree, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), tree)


def params_of(module, *inputs):
  return fill(nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"])


def draw(*shape, seed=1):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def torch_of(tree):
  return jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=True), tree)


def close(got, want, tol=1e-5):
  np.testing.assert_allclose(np.asarray(got), want.detach().numpy(), rtol=tol, atol=tol)


def test_quantizer_is_that_of_the_formulas():
  """Per sub-codebook: unit vectors, argmax of the cosine, both mean squares, straight through."""
  module, weights = SubCodebooks(codes=48, codebooks=3, width=12), draw(2, 5, 12, seed=2)
  z = draw(2, 5, 12)
  params = params_of(module, z)

  def total(params, z):
    out = module.apply({"params": params}, z)
    loss = out["codebook_loss"] + 0.25 * out["commit"] + (out["quant"] * weights).sum()
    return loss, out

  (_, out), grads = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(params, z)
  table = torch_of(params)["codebooks"]
  features = torch.tensor(z, requires_grad=True)
  indices, quants, losses = [], [], []
  for part, rows in zip(features.split(4, -1), table, strict=True):
    part, rows = F.normalize(part, dim=-1), F.normalize(rows, dim=-1)
    index = (part @ rows.T).argmax(-1)
    code = rows[index]
    losses.append(F.mse_loss(code, part.detach()) + 0.25 * F.mse_loss(code.detach(), part))
    indices.append(index)
    quants.append(part + (code - part).detach())
  quant = torch.cat(quants, -1)
  (sum(losses) / 3 + (quant * torch.tensor(weights)).sum()).backward()
  np.testing.assert_array_equal(out["indices"], torch.stack(indices, -1).numpy())
  assert out["indices"].dtype == jnp.int32
  close(out["quant"], quant)
  close(out["codebook_loss"] + 0.25 * out["commit"], sum(losses) / 3)
  assert table.grad is not None and features.grad is not None
  close(grads[0]["codebooks"], table.grad)
  close(grads[1], features.grad)
  looked_up = module.apply({"params": params}, out["indices"], method="lookup")
  np.testing.assert_allclose(looked_up, out["quant"], atol=1e-6)


def norm(x, p, eps):
  return F.layer_norm(x, x.shape[-1:], p["scale"], p["bias"], eps)


def dense(x, p):
  return x @ p["kernel"].reshape(x.shape[-1], -1) + (p["bias"].reshape(-1) if "bias" in p else 0)


def geglu(x, p):
  x = norm(x, p["norm"], 1e-6)
  return dense(F.gelu(dense(x, p["gate"]), approximate="tanh") * dense(x, p["up"]), p["down"])


@pytest.mark.parametrize("width, out", [(24, 8), (8, 24)])
def test_attention_projection_is_that_of_the_formulas(width, out):
  module, x = AttentionProjection(out), draw(2, 5, width)
  params = params_of(module, x)
  p, t = torch_of(params), torch.tensor(x)
  y = norm(t, p["norm1"], 1e-5)
  q, k, v = (dense(y, p[name]).reshape(2, 5, 3, 8).transpose(1, 2) for name in "qkv")
  y = F.scaled_dot_product_attention(q, k, v)  # [b h l k]
  y = y.mean(1) if width > out else y.transpose(1, 2).reshape(2, 5, -1)
  y = dense(y, p["out"]) + dense(norm(t, p["norm_skip"], 1e-5), p["skip"])
  y = y + geglu(norm(y, p["norm2"], 1e-5), p["mlp"])
  close(jax.jit(module.apply)({"params": params}, x), y, 1e-4)
  with pytest.raises(ValueError, match="from 24 to 7 channels"):
    AttentionProjection(7).init(jax.random.key(0), jnp.zeros((1, 1, 24)))


def test_geglu_is_that_of_the_formulas():
  module, x = GeGlu(7), draw(2, 5, 6)
  params = params_of(module, x)
  close(module.apply({"params": params}, x), geglu(torch.tensor(x), torch_of(params)))


def conv2d(x, p, **options):
  return F.conv2d(x, p["kernel"].permute(3, 2, 0, 1), p["bias"], padding=1, **options)


def places(function, x, *more):
  """A function of the last axis, on the channels of float[b c y x]."""
  return function(x.permute(0, 2, 3, 1), *more).permute(0, 3, 1, 2)


@pytest.mark.parametrize("sides", ["same", "halved", "doubled"])
def test_mbconv_is_that_of_the_formulas(sides):
  module, x = MbConv(VitaminConfig(), 3, sides), draw(2, 6, 4, 5)
  params = params_of(module, x)
  p, t = torch_of(params), torch.tensor(x.transpose(0, 3, 1, 2))
  y = F.gelu(places(dense, places(norm, t, p["norm"], 1e-6), p["expand"]))
  if sides == "doubled":
    twice = lambda x: F.interpolate(x, scale_factor=2, mode="nearest")  # noqa: E731
    y, short = conv2d(twice(y), p["up"]), conv2d(twice(t), p["shortcut"])
  else:
    if sides == "halved":
      t = F.avg_pool2d(t, 3, 2, 1, count_include_pad=False)
    short = places(dense, t, p["shortcut"])
  y = F.gelu(conv2d(y, p["depthwise"], stride=1 + (sides == "halved"), groups=12))
  want = (places(dense, y, p["project"]) + short).permute(0, 2, 3, 1)
  close(jax.jit(module.apply)({"params": params}, x), want, 1e-4)


def test_vitamin_large_has_the_published_number_of_weights():
  """333.3M with 196 positions and a head of 768 channels, which UniTok does not have."""
  c = VitaminConfig()
  images, tokens = jnp.zeros((1, 256, 256, 3)), jnp.zeros((1, 256, 1024))
  sizes = []
  for module, x in ((Vitamin(c), images), (VitaminDecoder(c), tokens)):
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
    sizes.append(sum(x.size for x in jax.tree.leaves(shapes)))
    assert {len(x) for x in jax.tree.leaves(shapes["blocks"])} == {31}
  assert round((sizes[0] + 1024 * (196 + 768)) / 1e6, 1) == 333.3
  assert sizes[1] == 352_402_531  # wide convolutions instead of strided ones of each channel


@pytest.fixture(scope="module", params=CONFIGS)
def made(request):
  c = CONFIGS[request.param]
  module, side = UniTok(c), c.encoder.image
  images = np.clip(draw(2, side, side, 3), -1, 1)
  ids = np.random.default_rng(0).integers(0, 20, (2, 5)).astype(np.int32)
  return c, module, params_of(module, images, ids), images, ids


def test_codes_are_what_the_picture_is_drawn_of(made):
  c, module, params, images, ids = made

  def all_of(params, images, ids):
    def run(*inputs, **method):
      return module.apply({"params": params}, *inputs, **method)

    codes = run(images, method="encode")
    back = [run(codes, method=name) for name in ("decode_indices", "embed_codes")]
    return run(images, ids), codes, *back

  out, codes, rec, tokens = jax.jit(all_of, compiler_options=HURRY)(params, images, ids)
  assert codes.shape == (2, c.tokens, c.codebooks) and codes.dtype == jnp.int32
  assert codes.min() >= 0 and codes.max() < c.entries == 32 // c.codebooks
  np.testing.assert_array_equal(codes, out["indices"])
  assert rec.shape == (2, c.drawn, c.drawn, 3) and rec.dtype == jnp.float32
  np.testing.assert_allclose(rec, out["rec"], atol=1e-5)
  np.testing.assert_allclose(tokens, out["tokens"], atol=1e-5)
  pooled = np.asarray(tokens).mean(1)
  pooled = (pooled - pooled.mean(-1, keepdims=True)) / np.sqrt(pooled.var(-1) + 1e-6)[:, None]
  pooled = pooled * params["norm"]["scale"] + params["norm"]["bias"]
  embedding = np.array(pooled @ params["head"]["kernel"] + params["head"]["bias"])
  embedding /= np.linalg.norm(embedding, axis=-1, keepdims=True)
  np.testing.assert_allclose(out["image"], embedding, atol=1e-4)
  assert out["text"].shape == (2, 12)
  assert out["scale"] == pytest.approx(np.exp(params["logit_scale"]))


def test_wrong_sizes_are_named(made):
  c, module, params, _, _ = made
  with pytest.raises(ValueError, match=rf"images are \(25, 25, 3\).* {c.encoder.image} x"):
    module.apply({"params": params}, np.zeros((1, 25, 25, 3)), method="encode")
  for shape in ((1, c.tokens + 1, c.codebooks), (1, c.tokens, c.codebooks + 1)):
    with pytest.raises(ValueError, match=rf"UniTok's are \[b {c.tokens} {c.codebooks}\]"):
      module.apply({"params": params}, np.zeros(shape, np.int32), method="decode_indices")


def test_training_leaves_branches_out():
  """With a rate of nearly 1, what is left of two blocks is the first's."""
  images, seeds = np.clip(draw(4, 24, 24, 3), -1, 1), [jax.random.key(i) for i in range(2)]
  module, still = (Vitamin(VitaminConfig(**VITAMIN, drop_path=rate)) for rate in (0.5, 0.0))
  params = params_of(module, images)
  run = jax.jit(
    lambda module, train, key: module.apply(
      {"params": params}, images, train, rngs={"dropout": key}
    ),
    static_argnums=(0, 1),
    compiler_options=HURRY,
  )
  plain, a, b = run(still, True, seeds[0]), *(run(module, True, seed) for seed in seeds)
  np.testing.assert_allclose(run(module, False, seeds[0]), plain, atol=1e-5)
  changed = [np.abs(x - plain).max((1, 2)) > 1e-3 for x in (a, b)]
  assert (changed[0] != changed[1]).any() or not np.allclose(a, b)
  assert np.concatenate(changed).any()


def test_configs_that_do_not_fit():
  refused = [
    ({"codebooks": 3}, "codes=32 and code_width=8 do not divide into codebooks=3"),
    ({"projection": "conv"}, "projection='conv' is none of"),
    ({"text": TEXT | {"out": 13}}, "texts are embedded in 13"),
    ({"encoder": TOWER}, "needs a decoder"),
    ({"encoder": VITAMIN | {"image": 20}}, "image=20 must be a multiple of 8 pixels"),
    ({"encoder": VITAMIN | {"depths": (1, 2)}}, "unlike length"),
  ]
  for changes, words in refused:
    with pytest.raises(ValueError, match=words):
      UniTokConfig(**{**FIELDS, **changes})


def test_the_scale_stops_and_can_go_back():
  for x, pull, want in ((1.0, -1.0, -1.0), (3.0, -1.0, 0.0), (3.0, 1.0, 1.0)):
    value, grad = jax.value_and_grad(lambda x, pull=pull: pull * at_most(x, 2.0))(x)
    assert (value, grad) == (pull * min(x, 2.0), want)
