"""The VQ tokenizer: its converter, gradients, shapes and pictures (test_parity.py: its numbers)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tarjax.convert import vqvae as convert
from tarjax.convert.rules import ConversionError
from tarjax.models.layers import GroupNorm
from tarjax.models.vqvae import VqVae, VqVaeConfig, to_uint8
from tarjax.sharding import make_mesh, tree_shardings
from tests import golden

TINY = VqVaeConfig(
  channels=8, multipliers=(1, 2), blocks=1, latent=8, codes=16, code_width=4, groups=4
)


@pytest.fixture(scope="module")
def record():
  return golden.load("vqvae")


@pytest.fixture(scope="module")
def tiny():
  model = VqVae(TINY)
  images = jax.random.uniform(jax.random.key(1), (2, 8, 12, 3), minval=-1)
  fast = {
    "xla_backend_optimization_level": 0
  }  # compiling fifty random draws takes most of the time
  init = jax.jit(model.init, compiler_options=fast)
  return model, nn.meta.unbox(init(jax.random.key(0), images)), images


def test_round_trip_is_exact(record):
  config, sd, _, _ = record
  c = convert.vqvae_config(config)
  back = convert.to_torch(c, convert.from_torch(c, sd))
  assert back.keys() == sd.keys()
  for name, tensor in sd.items():
    assert back[name].dtype == tensor.dtype, name
    np.testing.assert_array_equal(back[name], tensor, name)


def test_conversion_names_what_is_wrong(record):
  config, sd, _, _ = record
  c = convert.vqvae_config(config)
  with pytest.raises(ConversionError, match="decoder/norm_out/bias .*filled by no tensor"):
    convert.from_torch(c, {k: v for k, v in sd.items() if k != "decoder.norm_out.bias"})
  with pytest.raises(ConversionError, match="discriminator.weight: matched by no rule"):
    convert.from_torch(c, sd | {"discriminator.weight": np.zeros(3, np.float32)})


def test_released_size_has_the_published_number_of_weights():
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  shapes = jax.eval_shape(VqVae(VqVaeConfig()).init, jax.random.key(0), images)
  assert round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6) == 72


def test_training_reaches_every_weight(tiny):
  model, variables, images = tiny

  def loss(variables):
    out = model.apply(variables, images)
    rec = jnp.square(out["rec"] - images).mean()
    return rec + out["codebook_loss"] + out["commit_loss"]

  grads = jax.jit(jax.grad(loss))(variables)
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    assert np.isfinite(g).all(), name
    if not name.endswith("k/bias"):  # softmax does not see what it adds to every key
      assert np.abs(g).max() > 0, name


def test_drawing_codes_is_drawing_their_vectors(tiny):
  model, variables, images = tiny
  out = jax.jit(model.apply)(variables, images)
  assert out["indices"].shape == (2, 24) and out["indices"].dtype == jnp.int32
  draw = jax.jit(lambda ids: model.apply(variables, ids, (4, 6), method="decode_indices"))
  rec = draw(out["indices"])
  np.testing.assert_allclose(rec, out["rec"], atol=1e-5)
  np.testing.assert_allclose(jnp.square(out["quant"]).sum(-1), 1, atol=1e-5)


def test_sizes_that_do_not_fit(tiny):
  model, variables, _ = tiny
  with pytest.raises(ValueError, match="24 codes do not fill a grid of 4 x 4"):
    model.apply(variables, np.zeros((1, 24), np.int32), method="decode_indices")
  with pytest.raises(ValueError, match=r"\(1, 9, 8, 3\) has a side that 2 does not divide"):
    model.apply(variables, np.zeros((1, 9, 8, 3), np.float32), method="encode")


def test_shards_over_a_mesh(tiny):
  model, _, images = tiny
  abstract = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  shardings = tree_shardings(abstract, make_mesh({"data": 2, "fsdp": 2, "model": 2}))
  assert len(jax.tree.leaves(shardings)) == len(jax.tree.leaves(nn.meta.unbox(abstract)))


@pytest.mark.parametrize("groups", [2, 8])
def test_group_norm_is_that_of_torch(groups):
  rng = np.random.default_rng(0)
  x = (rng.normal(size=(2, 5, 4, 8)) * 0.3 + 2).astype(np.float32)
  scale, bias, weight = (rng.normal(size=s).astype(np.float32) for s in (8, 8, x.shape))

  def loss(x):
    return (GroupNorm(groups).apply({"params": {"scale": scale, "bias": bias}}, x) * weight).sum()

  value, grad = jax.value_and_grad(loss)(jnp.asarray(x))
  t = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
  y = F.group_norm(t, groups, torch.tensor(scale), torch.tensor(bias), 1e-6)
  want = (y * torch.tensor(weight.transpose(0, 3, 1, 2))).sum()
  want.backward()
  assert t.grad is not None
  golden.close(value, want.detach().numpy(), 1e-5)
  golden.close(grad, t.grad.numpy().transpose(0, 2, 3, 1), 2e-5)


def test_group_norm_of_a_flat_image_is_its_bias():
  x = jnp.full((1, 48, 48, 4), 7.3)
  params = {"scale": jnp.ones(4), "bias": jnp.arange(4.0)}
  y = GroupNorm(2).apply({"params": params}, x)
  np.testing.assert_allclose(y, jnp.broadcast_to(params["bias"], x.shape), atol=2e-2)


def test_pictures_are_cut_or_rounded():
  x = np.array([0.9, -0.5, -3.0, 3.0], np.float32)
  np.testing.assert_array_equal(to_uint8(x), [242, 63, 0, 255])
  np.testing.assert_array_equal(to_uint8(x, "round"), [242, 64, 0, 255])
  with pytest.raises(ValueError, match="'up'"):
    to_uint8(x, "up")
