"""Dif-DTok out of two run folders: pictures of seeds, samplers, and what a bundle says about it."""

import contextlib
import functools
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarjax import checkpoint, diffusion, saving
from tarjax.config import UserError
from tarjax.detokenizer import DifDetokenizer
from tarjax.devices import Devices
from tarjax.models.dc_ae import DcAe, DcAeConfig
from tarjax.models.dif_dtok import DifDtok, DifDtokConfig
from tarjax.pipeline import TarPipeline
from tarjax.state import TrainState

SANA = {"channels": 4, "width": 16, "depth": 1, "heads": 2, "cross_heads": 2, "cross_head_dim": 4}
SANA |= {"cond_width": 6, "size": 2}
STAGES = [{"width": 8, "depth": 1}, {"width": 8, "depth": 1}]
DC_AE = {"latent": 4, "encoder": STAGES, "decoder": STAGES, "head_dim": 4, "scaling": 0.5}


def filled(model, *args):
  rng = np.random.default_rng(0)
  shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *args)["params"])
  return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)


def write(run, config, params, frozen):
  run.mkdir(parents=True)
  (run / "config.json").write_text(json.dumps({"config": config}))
  saver = saving.Saver(run, 1)
  saver.save(1, TrainState(1, params, {"none": np.zeros(1)}), {})
  saver.close()
  checkpoint.save_frozen(run, frozen)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """(SANA's parameters, DC-AE's, the null condition, folders) of a run that trained a part."""
  folder = tmp_path_factory.mktemp("runs")
  sana = filled(
    DifDtok(DifDtokConfig(**SANA)), jnp.zeros((1, 2, 2, 4)), jnp.zeros(1), jnp.zeros((1, 1, 6))
  )
  dc_ae = filled(DcAe(DcAeConfig(**DC_AE)), jnp.zeros((1, 4, 4, 3)))
  null = np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)
  trained = {"cond": sana["cond"], "blocks": {"cross": sana["blocks"]["cross"]}}
  rest = {k: v for k, v in sana.items() if k != "cond"}
  rest["blocks"] = {k: v for k, v in sana["blocks"].items() if k != "cross"}
  config = {"model": SANA, "trained": "condition", "dc_ae_size": 4, "shift": 3.0}
  write(folder / "dif", config, trained, {"sana": rest, "null": null})
  write(folder / "dc_ae", {"model": DC_AE}, dc_ae, {})
  return sana, dc_ae, null, (folder / "dif", folder / "dc_ae")


@functools.cache
def cond():
  return np.random.default_rng(2).normal(size=(3, 5, 6)).astype(np.float32)


@pytest.mark.parametrize("sampler", ["dpm", "euler"])
def test_pictures_are_the_sampled_latents_decoded(runs, sampler):
  sana, dc_ae, null, folders = runs
  pictures = DifDetokenizer(*folders).draw(
    cond(), [5, 6, 7], sampler=sampler, steps=3, guidance_scale=2.0
  )
  assert pictures.shape == (3, 4, 4, 3) and pictures.dtype == np.uint8
  noise = jnp.stack([jax.random.normal(jax.random.key(s), (2, 2, 4)) for s in (5, 6, 7)])
  plan = {"dpm": diffusion.dpm_plan, "euler": diffusion.euler_plan}[sampler](3, 3.0)

  @jax.jit
  def draw(noise):
    model, vae = DifDtok(DifDtokConfig(**SANA)), DcAe(DcAeConfig(**DC_AE))
    velocity = lambda *args: model.apply({"params": sana}, *args)  # noqa: E731
    both = jnp.broadcast_to(null[:5], (3, 5, 6))
    latents, _ = diffusion.sample(velocity, noise, plan, cond(), both, 2.0)
    return vae.apply({"params": dc_ae}, latents / 0.5, method="decode")

  want = np.clip(np.asarray(draw(noise)) * 127.5 + 127.5, 0, 255)
  assert np.abs(pictures - want).max() <= 0.51
  assert len(np.unique(pictures)) > 10


def test_a_seed_is_a_picture_in_any_batch(runs):
  dif = DifDetokenizer(*runs[3])
  whole = dif.draw(cond(), [5, 6, 7], steps=2)
  alone = dif.draw(cond()[1:2], [6], steps=2)
  assert np.abs(whole[1].astype(int) - alone[0]).max() <= 1
  with pytest.raises(ValueError, match="'ddim'"):
    dif.draw(cond(), [1, 2, 3], sampler="ddim")


class Painter:
  """Stands for a `DifDetokenizer`: notes what it is asked for."""

  side = 4

  def __init__(self):
    self.asked = []

  def draw(self, cond, seeds, **settings):
    self.asked.append((np.asarray(cond).shape, np.asarray(seeds).tolist(), settings))
    return np.zeros((len(cond), 4, 4, 3), np.uint8)

  def rebuild(self, images):
    return images


class Features:
  """Stands for `TaTokWords`: features of codes."""

  scales = (1, 2, 3)

  def condition(self, trees, ids):
    return jnp.zeros((*ids.shape, 6))


def pipeline(dif):
  """A pipeline of which only the de-tokenizer is there."""
  pipe: Any = object.__new__(TarPipeline)
  pipe.folder, pipe.batch, pipe.dif, pipe._compiled = Path("model"), 2, dif, {}
  pipe.devices = Devices()
  sampling = {"pixels": {}, "dif": {"steps": 3, "sampler": "euler"}}
  pipe.bundle = {"sampling": sampling, "preprocessing": {"canvas": 8}}
  pipe.representation, pipe.trees, pipe.checked = Features(), {}, contextlib.nullcontext
  return pipe


def test_a_bundle_draws_by_the_detokenizer_that_is_asked_for():
  painter = Painter()
  pipe = pipeline(painter)
  pictures = pipe.draw(np.zeros((3, 5), np.int32), [7, 8, 9], "dif", steps=4, sampler=None)
  assert pictures.shape == (3, 8, 8, 3)
  settings = {"steps": 4, "sampler": "euler"}
  assert painter.asked == [((2, 5, 6), [7, 8], settings), ((1, 5, 6), [9], settings)]
  image = np.full((8, 8, 3), 9, np.uint8)
  np.testing.assert_array_equal(pipe.reconstruct_dc_ae([image] * 3), [image] * 3)


def test_a_bundle_without_dif_dtok_says_so():
  pipe = pipeline(None)
  with pytest.raises(UserError, match="model has no Dif-DTok"):
    pipe.generate(["a three"], scale=1, detokenizer="dif")
  with pytest.raises(UserError, match="not 'gan'"):
    pipe.draw(np.zeros((1, 5), np.int32), [1], "gan")
