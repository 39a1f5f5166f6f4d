"""Every table of configs/ablations/: its graph, the configs of its rows, and what they train."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.ablations import base, codebooks, joint, scales, tasks
from tarjax import ablations
from tarjax import config as configs
from tarjax.tasks import make_task

PAGES = ("codebooks", "detokenizers", "embedding_init", "joint", "scales", "self_reflect", "tasks")
PAGES += ("imagenet", "representations")


def table_of(page: str, mini: bool):
  return ablations.load(f"configs/ablations/{page}.py", mini)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("mini", [False, True])
def test_rows_can_be_made(page, mini, tmp_path):
  """Names stand for something, configs are whole, networks fit their tasks."""
  table = table_of(page, mini)
  keys = table.of_rows(list(table.rows))
  assert table.question.endswith("?") and keys
  for row in table.rows.values():
    assert set(row.paper) <= set(table.metrics) or mini
    assert not mini or all(len(runs) >= 3 for runs in row.scores.values())
  for file, changes in ablations.configs_of(table, keys):
    config = configs.parse([f"--config={file}", f"--workdir={tmp_path}", *changes])[0]
    task = make_task(config)
    if mini:  # large networks of other sizes have tests of their own
      assert jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0)))
    sources = [Path(s["path"]).parts[1] for s in config.data.sources if "path" in s]
    runs = [table.run(k) for k in keys if f"--config={file}" in table.run(k).arguments]
    for run in runs:  # what a config reads is linked
      assert set(sources) <= set(run.reads), (file, sources, run.reads)
      assert all(spec.split("/")[1].split(":")[0] in run.reads for spec in config.init.values())


@pytest.mark.parametrize("page", PAGES)
def test_bundles_name_what_is_linked(page):
  for mini in (False, True):
    table = table_of(page, mini)
    for key in table.of_rows(list(table.rows)):
      run, folder = table.run(key), table.folders[key.partition("/")[0]]
      if run.module in ("tarjax.evaluate", "tarjax.reflect"):
        components = table.bundle["components"] | folder.components
        there = {Path(path).parts[0] for path in components.values()}
        assert there <= {*run.reads, *folder.runs}, (page, key, there - {*run.reads})


@pytest.mark.parametrize("page", [joint, scales, tasks, codebooks])
def test_an_unknown_row_is_told(page):
  with pytest.raises(ValueError, match="unknown variant 'bth': "):
    page.get_config("bth")


def test_a_change_of_a_key_that_is_not_there_is_an_error():
  with pytest.raises((AttributeError, KeyError)):
    base.mllm(True).update_from_flattened_dict({"model.widht": 16})
  with pytest.raises(ValueError, match="unknown variant 't2t'"):
    base.mllm(True, {"t2t": 1.0})


def test_rows_differ_in_what_the_table_says():
  def differences(a, b):
    one, other = (configs.flatten(configs.plain(c)) for c in (a, b))
    return {k for k in one.keys() | other.keys() if one.get(k) != other.get(k)}

  both, gen = (joint.get_config(row) for row in ("both", "gen"))
  assert differences(both, gen) == {"data/sources", "steps", "optim/warmup"}
  weights = {s["path"]: s["weight"] for s in tasks.get_config("both").data.sources}
  assert weights["../t2i/data"] == 4 * weights["../i2i/data"] == pytest.approx(4 / 3)
  assert sum(weights.values()) == pytest.approx(5)
  (a, b, c) = (codebooks.get_config(f"mini_{row}_ta_tok") for row in "abc")
  assert differences(a, b) == {"model/width", "beta"}
  assert a.beta * a.model.width == b.beta * b.model.width == 0.25
  assert differences(b, c) == {"model/codebook", "model/l2_normalized", "beta"}
  full = codebooks.get_config("a_mllm")
  assert full.words.codes == 32_768 and full.model.vocab % 512 == 0
  assert 0 <= full.model.vocab - (151_665 + 5 + 32_768) < 512


def test_pre_alignment_trains_only_new_rows():
  model = dict(vocab=64, width=16, depth=1, heads=4, kv_heads=2, head_dim=8, mlp=32, tied=False)
  config = dict(task="mllm", model=model, words=dict(text_rows=40, codes=16), loss_chunk=16)
  config |= dict(pre_align=True, optim=dict(weight_decay=0.0))
  task = make_task(ConfigDict(config))
  params = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0)))
  tokens = np.append(np.random.default_rng(0).permutation(61), 0)[None].astype(np.int32)
  batch = {"tokens": tokens, "labels": tokens, "segments": np.ones_like(tokens)}
  batch["positions"] = np.arange(62, dtype=np.int32)[None]

  def loss(params):
    return task.loss(params, {}, jax.tree.map(jnp.asarray, batch), None, train=True)[0]

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  table, head = grads["embed"].pop("embedding"), grads["lm_head"].pop("kernel")
  assert not any(leaf.any() for leaf in jax.tree.leaves(grads))
  assert not table[:40].any() and table[40:61].any(-1).all()
  assert not head[:, :40].any() and head[:, 40:61].any(0).all()
  config["pre_align"] = False
  other = make_task(ConfigDict(config))
  task.loss = other.loss
  assert float(jax.jit(loss)(params)) == pytest.approx(float(value), rel=1e-6)
  config |= dict(pre_align=True, optim=dict(weight_decay=0.1))
  with pytest.raises(ValueError, match="set config.optim.weight_decay to 0"):
    make_task(ConfigDict(config))
