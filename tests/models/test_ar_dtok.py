"""AR-DTok against recordings of Tar's code, its files, and itself: cached, dropped, resized."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarjax.convert import ar_dtok as convert
from tarjax.convert.rules import ConversionError
from tarjax.models.ar_dtok import ArDtok, ArDtokConfig, mlp_width, null_condition
from tarjax.sampling import generate_codes
from tests import golden

CASES = ["ar_clip_learned_pe", "ar_clip_fixed_pe", "ar_clip_gqa", "ar_indice", "ar_class"]
SMALL = ArDtokConfig(
  width=32, depth=2, heads=4, vocab=24, cond_width=6, cond_length=5, length=8, mlp=48
)


def shapes(config):
  cond = jnp.zeros((1, 2, config.cond_width))
  tokens = jnp.zeros((1, config.length), jnp.int32)
  tree = jax.eval_shape(ArDtok(config).init, jax.random.key(0), cond, tokens)
  return nn.meta.unbox(tree)["params"]


@pytest.fixture(scope="module")
def model():
  rng = np.random.default_rng(0)
  fill = lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape, np.float32))  # noqa: E731
  params = jax.tree.map(fill, shapes(SMALL))
  cond = rng.standard_normal((3, 4, SMALL.cond_width), np.float32)
  tokens = rng.integers(0, SMALL.vocab, (3, SMALL.length)).astype(np.int32)
  return params, cond, tokens


def check(got, want):
  """Outputs within tolerance; codes equal up to a row's first near tie, if there is one."""
  assert want.keys() <= got.keys()
  for key in want:
    if not key.endswith(".tokens"):
      golden.close(got[key], want[key])
      continue
    top = np.sort(want[key.replace("tokens", "logits")], -1)
    clear = np.logical_and.accumulate(top[..., -1] - top[..., -2] > 1e-4, 1)
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(got[key][clear], want[key][clear])


@pytest.mark.parametrize("name", CASES)
def test_recorded(name):
  config, sd, inputs, want = golden.load(name)
  tensors = json.loads((golden.FIXTURES / f"{name}.json").read_text())["tensors"]
  check(convert.run_parity(config, sd, inputs, tensors), want)


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name):
  args, sd, _, _ = golden.load(name)
  config = convert.ar_dtok_config(args)
  back = convert.to_torch(config, convert.from_torch(config, sd))
  assert back.keys() == sd.keys()
  for key in sd:
    np.testing.assert_array_equal(back[key], sd[key])


def test_checkpoint_file(tmp_path):
  manifest, _, inputs, want = golden.load("ar_dtok_tiny_pth")
  path, sizes = golden.FIXTURES / "ar_dtok_tiny.pth", manifest["name_means"]
  config, sd = convert.read_checkpoint(path, sizes)
  assert config == convert.ar_dtok_config(manifest)
  tensors = {"out.greedy_cfg4.tokens": ()}
  check(convert.run_parity(manifest, sd, inputs, tensors), want)
  convert.write_checkpoint(tmp_path / "x.pth", config, convert.from_torch(config, sd))
  again, back = convert.read_checkpoint(tmp_path / "x.pth", sizes)
  assert again == config and back.keys() == sd.keys()
  assert all(np.array_equal(back[k], sd[k]) for k in sd)
  with pytest.raises(ValueError, match="llama-abs-tiny.*llama-abs-XL"):
    convert.read_checkpoint(path)


def test_position_table_of_another_shape_is_an_error():
  args, sd, _, _ = golden.load("ar_clip_learned_pe")
  config = convert.ar_dtok_config(args | {"max_seq_len": 64})
  with pytest.raises(ConversionError, match=r"\(1, 24, 64\).*\(1, 72, 64\).*resize_positions"):
    convert.from_torch(config, sd)
  table = sd["abs_pe"][0]
  bigger = convert.resize_positions(table, 9, 64)
  assert bigger.shape == (72, 64)
  np.testing.assert_array_equal(bigger[:9], table[:9])
  np.testing.assert_array_equal(convert.resize_positions(table, 9, 16), table)
  ramp = np.repeat(np.arange(16.0)[:, None], 2, 1)[:-1]  # grid rows 0..3, 4..7, ...
  rows = convert.resize_positions(ramp, 0, 64).tolist()
  assert rows[9] == [1.25, 1.25]  # row 1, column 1 lies at (.25, .25): 4 * .25 + .25
  with pytest.raises(ValueError, match="squares"):
    convert.resize_positions(table, 9, 15)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_cached_decoding_equals_teacher_forcing(model, scale):
  params, cond, _ = model
  seeds = jnp.arange(3, dtype=jnp.uint32)
  args = {"guidance_scale": scale, "return_logits": True}
  codes, logits = generate_codes(ArDtok(SMALL), params, cond, seeds, **args)
  forward = jax.jit(lambda cond: ArDtok(SMALL).apply({"params": params}, cond, codes))
  null = forward(null_condition(SMALL, cond))
  want = null + scale * (forward(cond) - null)
  golden.close(logits, want, 1e-5)
  assert len(np.unique(codes)) > 4


def test_dropout_only_in_training(model):
  params, cond, tokens = model
  cond, tokens = jnp.repeat(cond, 5, 0), jnp.repeat(tokens, 5, 0)

  def run(config, cond=cond, train=False, **args):
    apply = lambda args: ArDtok(config).apply({"params": params}, cond, tokens, train=train, **args)  # noqa: E731
    return jax.jit(apply)(args)

  rng = {"dropout": jax.random.key(1)}
  plain = run(SMALL)
  np.testing.assert_array_equal(run(SMALL, rngs=rng), plain)
  dropped = run(SMALL, train=True, rngs=rng)
  np.testing.assert_array_equal(run(SMALL, train=True, rngs=rng), dropped)
  assert golden.error(dropped, plain) > 1e-2
  fields = {"width": 32, "depth": 2, "heads": 4, "vocab": 24, "cond_width": 6, "mlp": 48}
  fields |= {"cond_length": 5, "length": 8, "token_dropout": 0, "resid_dropout": 0}
  half = ArDtokConfig(**fields, ffn_dropout=0, cond_dropout=0.5)
  got = run(half, train=True, rngs={"dropout": jax.random.key(4)})
  null = run(half, null_condition(half, cond))
  kinds = [
    "kept" if golden.error(g, p) < 1e-5 else "null" if golden.error(g, n) < 1e-5 else "mixed"
    for g, p, n in zip(got, plain, null, strict=True)
  ]
  assert set(kinds) == {"kept", "null"}, kinds


def test_fresh_model_predicts_uniformly():
  cond, tokens = jnp.ones((2, 3, 6)), jnp.zeros((2, 8), jnp.int32)
  y, _ = ArDtok(SMALL).init_with_output(jax.random.key(0), cond, tokens)
  assert y.shape == (2, 8, 24) and not y.any()


@pytest.mark.parametrize(
  ("size", "vocab", "count"),
  [("XL", 16_384, 776_153_600), ("LP", 16_384, 654_241_280)],
)
def test_family_counts(size, vocab, count):
  tree = shapes(ArDtokConfig.of(size, vocab=vocab))
  assert sum(x.size for x in jax.tree.leaves(tree)) == count


def test_family_widths():
  want = {384: 1024, 768: 2048, 1024: 2816, 1280: 3584, 1536: 4096, 2560: 6912}
  assert {w: mlp_width(w) for w in want} == want


def test_wrong_configs(model):
  params, cond, tokens = model
  with pytest.raises(ValueError, match="'huge' is none of"):
    ArDtokConfig.of("huge")
  with pytest.raises(ValueError, match="cond_length=729"):
    ArDtokConfig(cond="class", cond_vocab=10)
  with pytest.raises(ValueError, match="6 condition tokens"):
    ArDtok(SMALL).apply({"params": params}, jnp.tile(cond[:, :3], (1, 2, 1)), tokens)
  plain = ArDtokConfig(cond="indices", cond_vocab=4, cond_dropout=0)
  with pytest.raises(ValueError, match="no null condition"):
    null_condition(plain, jnp.zeros((1, 2), jnp.int32))
