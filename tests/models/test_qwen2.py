"""Qwen2 against recordings of transformers, and against itself: cached, packed, sharded."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarjax.convert.qwen2 import from_torch, hf_config, qwen2_config, run_parity, to_torch
from tarjax.convert.rules import ConversionError
from tarjax.models.attention import causal_mask
from tarjax.models.qwen2 import Qwen2, Qwen2Config, empty_cache
from tarjax.sharding import make_mesh, tree_shardings
from tests import golden

SMALL = Qwen2Config(vocab=40, width=32, depth=2, heads=4, kv_heads=2, head_dim=8, mlp=48)


@pytest.fixture(scope="module")
def model():
  module = Qwen2(SMALL)
  boxed = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
  rng = np.random.default_rng(0)
  fill = lambda x: 0.3 * rng.standard_normal(x.shape, np.float32)  # noqa: E731
  return module, jax.tree.map(fill, nn.meta.unbox(boxed)["params"])


def words(*shape):
  return np.random.default_rng(1).integers(0, SMALL.vocab, shape).astype(np.int32)


def logits_of(module, params, ids, **args):
  @jax.jit
  def run(params, ids, args):
    hidden, cache = module.apply({"params": params}, ids, **args)
    return module.apply({"params": params}, hidden, method="logits"), cache

  return run(params, ids, args)


@pytest.mark.parametrize("name", ["qwen2_tied", "qwen2_untied"])
def test_recorded(name):
  config, sd, inputs, want = golden.load(name)
  tensors = json.loads((golden.FIXTURES / f"{name}.json").read_text())["tensors"]
  got = run_parity(config, sd, inputs, tensors)
  assert got.keys() == want.keys()
  for key in want:
    if key.startswith(("right.logits", "right.hidden", "embeds", "left")):
      real = inputs["mask_left" if key.startswith("left") else "mask_right"] == 1
      golden.close(got[key][real], want[key][real])
    elif key != "gen.tokens":
      golden.close(got[key], want[key])
  top = np.sort(want["gen.scores"], -1)
  assert (top[..., -1] - top[..., -2]).min() > 1e-4
  np.testing.assert_array_equal(got["gen.tokens"], want["gen.tokens"])


@pytest.mark.parametrize("name", ["qwen2_tied", "qwen2_untied"])
def test_round_trip(name):
  hf, sd, _, _ = golden.load(name)
  config = qwen2_config(hf)
  assert qwen2_config(hf_config(config)) == config
  back = to_torch(config, from_torch(config, sd))
  assert back.keys() == sd.keys()
  for key in sd:
    np.testing.assert_array_equal(back[key], sd[key])


def test_converter_skips_the_tower_and_a_tied_copy_and_refuses_the_rest():
  hf, sd, _, _ = golden.load("qwen2_tied")
  config, table = qwen2_config(hf), sd["model.embed_tokens.weight"]
  more = sd | {"model.vision_tower.x": np.ones(3, np.float32), "lm_head.weight": table}
  got = from_torch(config, more)
  assert got["embed"]["embedding"].shape == (config.vocab, config.width)
  with pytest.raises(ConversionError, match="the model is tied"):
    from_torch(config, more | {"lm_head.weight": table + 1})
  with pytest.raises(ConversionError, match="embed/embedding"):
    from_torch(qwen2_config(hf | {"vocab_size": 161}), sd)
  with pytest.raises(ConversionError, match="norm/scale"):
    from_torch(config, {k: v for k, v in sd.items() if k != "model.norm.weight"})
  with pytest.raises(ValueError, match="rope scaling"):
    qwen2_config(hf | {"rope_scaling": {"rope_type": "yarn"}})


def test_cached_in_pieces_equals_whole(model):
  ids = words(2, 9)
  want, _ = logits_of(*model, ids)
  cache, parts = empty_cache(SMALL, 2, 12), []
  for start, stop in ((0, 4), (4, 5), (5, 9)):
    positions = jnp.arange(start, stop)
    mask = (jnp.arange(12) <= positions[:, None])[None]
    piece = ids[:, start:stop]
    args = {"positions": positions[None], "mask": mask, "cache": cache, "index": start}
    got, cache = logits_of(*model, piece, **args)
    parts.append(got)
  golden.close(jnp.concatenate(parts, 1), want, 1e-5)


def test_packed_documents_do_not_see_each_other(model):
  ids = words(1, 9)
  segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]])
  positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 0, 0]])
  packed, _ = logits_of(*model, ids, positions=positions, mask=causal_mask(segments))
  for part in (slice(0, 4), slice(4, 7)):
    alone, _ = logits_of(*model, ids[:, part])
    golden.close(packed[:, part], alone, 1e-5)
  whole, _ = logits_of(*model, ids)
  assert golden.error(packed[:, 4:7], whole[:, 4:7]) > 1e-2


def test_sharded_equals_single_device(model):
  module, params = model
  ids = words(4, 6)
  want, _ = logits_of(module, params, ids)
  mesh = make_mesh({"data": 2, "fsdp": 2, "model": 2})
  abstract = jax.eval_shape(module.init, jax.random.key(0), ids)["params"]
  placed = jax.device_put(params, tree_shardings(abstract, mesh))
  assert not placed["blocks"]["attn"]["q"]["kernel"].sharding.is_fully_replicated
  with jax.set_mesh(mesh):
    got, _ = logits_of(module, placed, ids)
  golden.close(got, want, 1e-5)


@pytest.mark.parametrize(
  ("fields", "millions"),
  [
    ({}, 494.0),
    ({"width": 1536, "depth": 28, "heads": 12, "head_dim": 128, "mlp": 8960}, 1543.7),
    (
      {
        "vocab": 152_064,
        "width": 3584,
        "depth": 28,
        "heads": 28,
        "kv_heads": 4,
        "head_dim": 128,
        "mlp": 18_944,
        "tied": False,
      },
      7615.6,
    ),
  ],
)
def test_parameter_counts(fields, millions):
  ids = jnp.zeros((1, 2), jnp.int32)
  tree = jax.eval_shape(Qwen2(Qwen2Config(**fields)).init, jax.random.key(0), ids)
  assert sum(x.size for x in jax.tree.leaves(tree)) / 1e6 == pytest.approx(millions, abs=0.05)


def test_wrong_calls(model):
  module, params = model
  with pytest.raises(ValueError, match="either ids or embeds"):
    module.apply({"params": params})
  with pytest.raises(ValueError, match="mask and an index"):
    logits_of(module, params, jnp.zeros((1, 2), jnp.int32), cache=empty_cache(SMALL, 1, 4))
  with pytest.raises(ValueError, match="kv_heads=3"):
    Qwen2Config(kv_heads=3)
