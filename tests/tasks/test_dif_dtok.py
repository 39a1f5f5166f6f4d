"""The tasks of Dif-DTok and DC-AE: what is trained, what is read, and what the losses are."""

import copy
import functools
import math
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tarjax import checkpoint, saving, tasks, train
from tarjax.config import OPTIONAL, claim
from tarjax.convert.rules import flatten, unflatten
from tarjax.convert.store import TreeReader
from tarjax.data import sources
from tarjax.models.dif_dtok import DifDtok, DifDtokConfig
from tarjax.state import TrainState
from tests import golden

SANA = {"channels": 4, "width": 16, "depth": 2, "heads": 2, "cross_heads": 2, "cross_head_dim": 4}
SANA |= {"cond_width": 16, "size": 2}
TOWER = {"depth": 1, "heads": 2, "mlp": 16}
TA_TOK = {
  "encoder": {"width": 16, "image": 16, "patch": 4, **TOWER, "depth": 2},
  "decoder": {"positions": 4, **TOWER},
  "codes": 16,
  "width": 8,
}
STAGES = ({"width": 8, "depth": 1}, {"width": 8, "depth": 1})
STAGES += ({"width": 8, "depth": 1, "attention": True, "scales": (5,)},)
DC_AE = {"latent": 4, "encoder": STAGES, "decoder": STAGES, "head_dim": 4, "scaling": 0.5}
OPTIM = {"name": "came", "lr": 1e-2, "b1": 0.9, "b2": 0.999, "b3": 0.9999, "eps": 1e-30}
OPTIM |= {"weight_decay": 0.0, "warmup": 1, "schedule": "constant", "final": 0.0, "clip": 0.1}
LATENTS = {"sources": [{"name": "records", "path": "../latents"}], "format": "latents"}


def make_config(**changes):
  config = ConfigDict(
    {
      "task": "dif_dtok",
      "seed": 0,
      "steps": 2,
      "batch": 8,
      "model": SANA,
      "ta_tok": TA_TOK,
      "dc_ae": DC_AE,
      "dc_ae_size": 8,
      "ta_tok_from": "../ta_tok",
      "dc_ae_from": "../dc_ae",
      "sana_from": "../sana",
      "trained": "condition",
      "shift": 3.0,
      "cond_dropout": 0.1,
      "scales": {"1": 0.0, "2": 1.0},
      "init": {},
      "frozen": {},
      "dont_load": [],
      "optim": OPTIM,
      "mesh": {"data": 4, "fsdp": 2, "model": 1},
      "data": {"sources": [{"name": "digits", "task": "image"}], "format": "images", "size": 16},
      "log_every": 1,
      "save_every": 2,
      "eval_every": 0,
      "keep": 1,
    }
  )
  config.update(OPTIONAL | changes)
  return config


def filled(shapes, seed):
  """A tree of these shapes with no zero or one in it."""
  rng = np.random.default_rng(seed)
  make = lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32)  # noqa: E731
  return jax.tree.map(make, nn.meta.unbox(shapes))


@functools.cache
def networks():
  """Random weights of the three networks that Dif-DTok starts from, as runs hold them."""
  task, key = tasks.make_task(make_config()), jax.random.key(0)
  side, factor = TA_TOK["encoder"]["image"], task.dc_ae.config.factor
  init = lambda model, *args, **kw: jax.eval_shape(  # noqa: E731
    functools.partial(model.init, **kw), key, *args
  )["params"]
  ta_tok = filled(init(task.ta_tok, jnp.zeros((1, side, side, 3)), scale=1), 1)
  dc_ae = filled(init(task.dc_ae, jnp.zeros((1, factor, factor, 3))), 2)
  sana = filled(jax.eval_shape(task._init, key), 3)
  embedding = ta_tok["quantizer"].pop("embedding")
  return {
    "ta_tok": (ta_tok, {"embedding": embedding}),
    "dc_ae": (dc_ae, {}),
    "sana": (sana, {}),
  }


def load(spec, frozen=False):
  return copy.deepcopy(networks()[spec.removeprefix("../")][frozen])


def begun(**changes):
  """(task, params, frozen) at step 0."""
  task, key = tasks.make_task(make_config(**changes)), jax.random.key(0)
  params, frozen = (filled(jax.eval_shape(f, key), 4) for f in (task.init, task.init_frozen))
  return task, *task.start(params, frozen, load, None, dict)


def batch():
  rng = np.random.default_rng(0)
  return {"image": rng.integers(0, 256, (4, 16, 16, 3), np.uint8)}


def read_batch():
  found = list(records())[:4]
  codes = np.stack([r["codes"][0][2] for r in found]).astype(np.int32)
  return {"codes2": codes, "latent": np.stack([r["latent"][0] for r in found])}


TURNS = [{"from": "human", "value": "a seven"}, {"from": "gpt", "value": "<image>"}]


def records():
  rng = np.random.default_rng(0)
  for i in range(16):
    codes = {s: rng.integers(0, 16, n, np.uint16) for s, n in ((1, 16), (2, 4), (3, 1))}
    latent = rng.normal(size=(2, 2, 4)).astype(np.float32)
    yield {"id": f"x/{i}", "conversations": TURNS, "codes": [codes], "latent": [latent]}


def test_a_run_trains_what_reads_the_condition_and_nothing_else(tmp_path):
  sources.write_records(tmp_path / "latents", records(), meta={})
  for name, (params, frozen) in networks().items():
    saver = saving.Saver(tmp_path / name, 1)
    saver.save(1, TrainState(1, params, {"none": np.zeros(1)}), {})
    saver.close()
    checkpoint.save_frozen(tmp_path / name, frozen)
  config, run = make_config(data=LATENTS), tmp_path / "dif_dtok"
  claim(run, config)
  assert train.train(config, run, [], time.time()) == 0

  sana = flatten(networks()["sana"][0])
  params = flatten(checkpoint.load(str(run)))
  rest = flatten(checkpoint.load(str(run) + ":sana", frozen=True))
  assert params.keys() | rest.keys() == sana.keys() and not params.keys() & rest.keys()
  assert all(name.startswith(("cond/", "blocks/cross/")) for name in params)
  for name, array in rest.items():
    np.testing.assert_array_equal(array, sana[name], name)
  for name, array in params.items():
    if name != "blocks/cross/k/bias":  # softmax does not see what it adds to every key
      assert (array != sana[name]).any(), name
  state = TreeReader(run / "checkpoints" / "2" / "opt").arrays
  sizes = sum(x.size for x in params.values())
  assert sum(math.prod(x.shape) for x in state.values()) < 2 * sizes  # a mean, and factored squares


def test_split_and_join_are_inverse():
  from tarjax.tasks.dif_dtok import join

  sana = networks()["sana"][0]
  for trained in ("condition", "all"):
    task = tasks.make_task(make_config(trained=trained))
    parts = task.split(sana)
    again = join(*parts)
    assert flatten(again).keys() == flatten(sana).keys()
    assert (parts[1] == {}) == (trained == "all")


def test_from_scratch_everything_is_trained():
  task, params, frozen = begun(trained="all", sana_from="")
  assert "sana" not in frozen
  assert flatten(params).keys() == flatten(networks()["sana"][0]).keys()


def test_codes_and_latents_may_be_computed_or_read():
  task, _, frozen = begun()
  pixels = jnp.float32(batch()["image"]) / 127.5 - 1

  @jax.jit
  def compute(frozen):
    codes = task.ta_tok.apply({"params": frozen["ta_tok"]}, pixels, 2, method="encode")
    return codes, task.encode(frozen["encoder"], pixels), task.inputs(frozen, batch(), 2)

  codes, latents, computed = compute(frozen)
  assert codes.shape == (4, 4) and latents.shape == (4, 2, 2, 4)
  reader, _, lean = begun(data=LATENTS)
  assert "encoder" not in lean and "encoder" not in lean["ta_tok"]
  given = {"codes2": codes, "latent": latents}
  read = jax.jit(lambda frozen: reader.inputs(frozen, given, 2))(lean)
  for a, b in zip(read, computed, strict=True):
    golden.close(a, b, 1e-5)


def test_a_dropped_condition_is_the_null_condition():
  task, params, frozen = begun(cond_dropout=1.0, data=LATENTS)
  loss = jax.jit(functools.partial(task.loss, train=True, scale=2))
  want = loss(params, frozen, read_batch(), jax.random.key(1))[0]
  other = dict(frozen, ta_tok=jax.tree.map(lambda x: 1.1 * x, frozen["ta_tok"]))
  assert loss(params, other, read_batch(), jax.random.key(1))[0] == want
  other = dict(frozen, null=1.1 * frozen["null"])
  assert loss(params, other, read_batch(), jax.random.key(1))[0] != want
  assert frozen["null"].shape == (16, 16)
  assert abs(frozen["null"].std() - 0.25) < 0.05


def test_the_loss_is_that_of_the_velocity():
  """By hand, without dropout and with the keys that the task derives."""
  task, params, frozen = begun(cond_dropout=0.0, data=LATENTS)
  rng = jax.random.key(5)
  loss = functools.partial(task.loss, train=True, scale=2)
  got, _ = jax.jit(loss)(params, frozen, read_batch(), rng)
  places, drawn, _ = jax.random.split(rng, 3)
  cond, latents = jax.jit(lambda f: task.inputs(f, read_batch(), 2))(frozen)
  i = np.floor(1000 / (1 + np.exp(-np.asarray(jax.random.normal(places, (4,)), np.float64))))
  sigma = 3 * (i / 1000) / (1 + 2 * i / 1000)
  noise = np.asarray(jax.random.normal(drawn, latents.shape))
  s = sigma[:, None, None, None]
  noisy = ((1 - s) * np.asarray(latents) + s * noise).astype(np.float32)
  times = np.floor(1000 * sigma + 1e-6).astype(np.float32)
  sana = unflatten(flatten(params) | flatten(frozen["sana"]))
  model = DifDtok(DifDtokConfig(**SANA))
  velocity = jax.jit(lambda *args: model.apply({"params": sana}, *args))(noisy, times, cond)
  golden.close(got, np.square(np.asarray(velocity) - (noise - latents)).mean(), 1e-5)


def test_another_width_of_condition_gets_a_new_projection(capsys):
  sana, _ = networks()["sana"]
  wide = dict(sana, cond=dict(sana["cond"], fc1={"kernel": np.ones((24, 16)), "bias": np.ones(16)}))
  task = tasks.make_task(make_config())
  params = filled(jax.eval_shape(task.init, jax.random.key(0)), 4)
  frozen = {"null": np.zeros((16, 16), np.float32)}
  give = lambda spec, frozen=False: wide if "sana" in spec else load(spec, frozen)  # noqa: E731
  started, _ = task.start(params, frozen, give, None, dict)
  np.testing.assert_array_equal(started["cond"]["fc1"]["kernel"], params["cond"]["fc1"]["kernel"])
  np.testing.assert_array_equal(started["cond"]["fc2"]["kernel"], sana["cond"]["fc2"]["kernel"])
  assert "24 wide: a new projection from 16" in capsys.readouterr().out


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"trained": "some"}, "trained='some'"),
    ({"sana_from": ""}, "name sana_from"),
    ({"model": SANA | {"channels": 8}}, "4 channels, SANA's 8"),
    ({"model": SANA | {"guidance": 0.1}}, "guidance"),
  ],
)
def test_configs_that_do_not_fit(changes, words):
  with pytest.raises(ValueError, match=words):
    tasks.make_task(make_config(**changes))


def test_dc_ae_loss():
  config = ConfigDict({"task": "dc_ae", "model": DC_AE, "unit": 0.5, "latent_noise": 0.1})
  task, params = tasks.make_task(config), networks()["dc_ae"][0]
  images = {"image": batch()["image"][:, :8, :8]}
  loss = jax.jit(functools.partial(task.loss, train=False))
  value, metrics = loss(params, {}, images, jax.random.key(0))
  encode = jax.jit(lambda x: task.model.apply({"params": params}, x, method="encode"))
  z = encode(images["image"] / 127.5 - 1)
  off = np.square(z.mean((0, 1, 2))) + np.square(np.square(z).mean((0, 1, 2)) - 1)
  golden.close(value, metrics["mse"] + 0.5 * off.mean(), 1e-4)
  noisy = jax.jit(functools.partial(task.loss, train=True))
  assert noisy(params, {}, images, jax.random.key(0))[1]["mse"] != metrics["mse"]
