"""Filters against a recording; loops against full forwards, seeds, stops and constraints."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarjax import sampling
from tarjax.convert.ar_dtok import run_filter_parity
from tarjax.models.ar_dtok import ArDtok, ArDtokConfig
from tarjax.models.qwen2 import Qwen2, Qwen2Config
from tests import golden

LM = Qwen2(Qwen2Config(vocab=40, width=32, depth=2, heads=4, kv_heads=2, head_dim=8, mlp=48))


def fill(tree, seed=0):
  """Random parameters for a tree of shapes, from numpy: no compilation."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), tree)


@pytest.fixture(scope="module")
def params():
  tree = nn.meta.unbox(jax.eval_shape(LM.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
  return fill(tree["params"])


def prompts():
  """Three prompts of 5, 3 and 1 words, padded on the left to 5."""
  ids = np.random.default_rng(0).integers(1, 40, (3, 5)).astype(np.int32)
  mask = np.arange(5) >= np.array([0, 2, 4])[:, None]
  return np.where(mask, ids, 0).astype(np.int32), mask


def generate(params, ids=None, mask=None, seeds=(0, 1, 2), max_new=6, **args):
  if ids is None:
    ids, mask = prompts()
  seeds = np.asarray(seeds, np.uint32)
  return sampling.generate_tokens(LM, params, ids, mask, seeds, max_new=max_new, **args)


def test_recorded_filter():
  config, sd, inputs, want = golden.load("sampling_filter")
  got = run_filter_parity(config, sd, inputs)
  traced = jax.jit(sampling.filter_logits)
  for name, (k, p, t) in config["cases_k_p_t"].items():
    again = jax.nn.softmax(traced(inputs["logits"], t, k, p), -1)
    for found in (got[name], again):
      golden.close(np.sort(found, -1), np.sort(want[name], -1), 1e-6)
      assert ((found == 0).sum(-1) == (want[name] == 0).sum(-1)).all()


def test_filter_by_hand():
  logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.2, 0.1]))
  kept = lambda **args: np.flatnonzero(sampling.filter_logits(logits, **args) > -1e9).tolist()  # noqa: E731
  assert kept(top_k=2) == [1, 2, 3]  # a tie with the second stays
  assert kept(top_p=0.5) == [1, 2]  # the word that crosses stays, the lower of two equal ones
  assert kept(top_p=0.7) == [1, 2, 3]
  assert kept(top_p=0.3) == [1]
  assert kept(top_k=2, top_p=0.55) == [1, 2]  # 0.5 of what top-k left is not over 0.55


def test_sample_follows_the_distribution():
  logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
  keys = sampling.row_keys(jnp.arange(4000, dtype=jnp.uint32), 3)
  drawn = sampling.sample(keys, jnp.tile(logits, (4000, 1)))
  share = np.bincount(drawn, minlength=4) / 4000
  np.testing.assert_allclose(share, [0.5, 0.3, 0.15, 0.05], atol=0.03)
  assert (sampling.sample(keys, jnp.tile(logits, (4000, 1)), 0) == 0).all()


def test_a_row_does_not_depend_on_its_batch(params):
  ids, mask = prompts()
  batch = generate(params, seeds=(5, 6, 7), temperature=1.3)
  for i, seed in enumerate((5, 6, 7)):
    alone = generate(params, ids[i : i + 1], mask[i : i + 1], (seed,), temperature=1.3)
    np.testing.assert_array_equal(alone[0], batch[i])
  assert (np.asarray(generate(params, seeds=(8, 6, 7), temperature=1.3)[0]) != batch[0]).any()


def test_logprobs_equal_a_full_forward(params):
  ids, mask = prompts()
  tokens, found = generate(params, temperature=0.7, stop_ids=(-1, -1), also="logprobs")
  words = np.concatenate([ids, tokens], 1)
  real = np.concatenate([mask, np.ones((3, 6), bool)], 1)

  @jax.jit
  def forward(params, words):
    seen = jnp.tril(jnp.ones((11, 11), bool)) & real[:, None]
    positions = np.maximum(real.cumsum(1) - 1, 0)
    hidden, _ = LM.apply({"params": params}, words, positions=positions, mask=seen)
    return jax.nn.log_softmax(LM.apply({"params": params}, hidden, method="logits"), -1)

  want = np.asarray(forward(params, words))[:, 4:-1]
  golden.close(found, np.take_along_axis(want, np.asarray(tokens)[..., None], -1)[..., 0])


def test_stop_ids_and_padding(params):
  args = {"temperature": 0.7, "also": "logprobs"}
  free = np.asarray(generate(params, stop_ids=(-1, -1), **args)[0])
  stops = (int(free[0, 2]), 39)
  got, logprobs = generate(params, stop_ids=stops, pad_id=38, **args)
  for row, was, lp in zip(np.asarray(got), free, np.asarray(logprobs), strict=True):
    end = next((i for i, w in enumerate(was) if w in stops), 5)
    np.testing.assert_array_equal(row[: end + 1], was[: end + 1])
    assert (row[end + 1 :] == 38).all() and not lp[end + 1 :].any() and lp[: end + 1].all()


def test_exactly_n_image_words(params):
  first, last, end = 30, 35, 7
  pairs = np.array([(first, last)] * 4 + [(end, end)] * 2)
  by_function = sampling.allowed_ranges(lambda t: (30, 35) if t < 4 else (7, 7), 6)
  np.testing.assert_array_equal(by_function, pairs)
  np.testing.assert_array_equal(sampling.allowed_ranges((3, 9), 2), [[3, 9], [3, 9]])
  rows = np.stack([pairs, pairs, pairs[[0, 4, 5, 5, 5, 5]]])
  for allowed, counts in ((pairs, (4, 4, 4)), (rows, (4, 4, 1))):
    got = np.asarray(generate(params, allowed=allowed, temperature=2.0))
    for row, n in zip(got, counts, strict=True):
      assert ((row[:n] >= first) & (row[:n] <= last)).all() and (row[n:] == end).all()
  with pytest.raises(ValueError, match=r"\(5, 2\).*\[6 2\]"):
    generate(params, allowed=pairs[:5])


def test_vocab_limit(params):
  drawn = np.asarray(generate(params, temperature=50.0, vocab_limit=10))
  assert drawn.max() < 10 and len(np.unique(drawn)) > 4


def test_repetition_penalty_as_in_transformers(params):
  import torch
  from transformers import RepetitionPenaltyLogitsProcessor

  ids, mask = prompts()
  ids, mask = ids[:1], mask[:1]
  args = {"temperature": 0, "repetition_penalty": 1.7, "also": "logits"}
  tokens, logits = generate(params, ids, mask, (0,), **args)
  processor = RepetitionPenaltyLogitsProcessor(1.7)
  words, changed = torch.tensor(ids).long(), 0
  for t in range(6):
    scores = processor(words, torch.tensor(np.asarray(logits[:, t])))
    assert int(scores.argmax()) == int(tokens[0, t])
    changed += int(tokens[0, t]) != int(logits[0, t].argmax())
    words = torch.cat([words, torch.tensor([[int(tokens[0, t])]])], 1)
  assert changed


def test_numbers_do_not_recompile(params):
  generate(params, temperature=1.0, top_k=5, top_p=0.9)
  count = sampling._tokens._cache_size()
  generate(params, temperature=0.5, top_k=7, top_p=0.8, seeds=(9, 9, 9))
  assert sampling._tokens._cache_size() == count
  with pytest.raises(ValueError, match="top_p=0"):
    generate(params, top_p=0)


def test_guidance_interval_and_seeds_of_codes():
  config = ArDtokConfig(
    width=32, depth=1, heads=4, vocab=24, cond_width=6, cond_length=3, length=8, mlp=48
  )
  cond = np.random.default_rng(2).standard_normal((2, 3, 6), np.float32)
  module = ArDtok(config)
  tree = jax.eval_shape(module.init, jax.random.key(0), cond, jnp.zeros((2, 8), jnp.int32))
  weights = jax.tree.map(jnp.asarray, fill(nn.meta.unbox(tree)["params"]))

  def codes(cond, seeds, **args):
    seeds = np.asarray(seeds, np.uint32)
    return sampling.generate_codes(module, weights, cond, seeds, return_logits=True, **args)

  tokens, logits = codes(cond, (1, 2), guidance_scale=4.0, guidance_interval=2)
  forward = jax.jit(lambda cond: module.apply({"params": weights}, cond, tokens))
  full, null = forward(cond), forward(jnp.zeros_like(cond))
  guided = np.arange(8)[:, None] <= 3  # the first code, and those at index i + 1 with i <= 2
  golden.close(logits, jnp.where(guided, null + 4 * (full - null), full), 1e-5)
  alone, _ = codes(cond[1:], (2,), guidance_scale=4.0, guidance_interval=2)
  np.testing.assert_array_equal(alone[0], tokens[1])
