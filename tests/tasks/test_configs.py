"""Every stage config of the laptop run: known keys, networks that fit each other, pure draws."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from configs.digits import base
from tarjax import config as configs
from tarjax import tasks
from tarjax.tasks.inputs import draw_scale

STAGES = ("siglip2", "llm", "ta_tok", "vqvae", "ar_dtok", "mllm", "sft", "sft_reflect", "dc_ae")
STAGES += ("dif_dtok", "mllm_vqvae", "mllm_janus", "mllm_hybrid", "hybrid")


def parse(stage, variant, tmp_path):
  file = Path(__file__).parents[2] / "configs" / "digits" / f"{stage}.py"
  return configs.parse([f"--config={file}:{variant}", f"--workdir={tmp_path}"])[0]


@pytest.mark.parametrize("stage", STAGES)
def test_stage_is_complete(stage, tmp_path):
  full, smoke = parse(stage, "full", tmp_path), parse(stage, "smoke", tmp_path)
  assert smoke.steps < full.steps and smoke.optim.warmup < smoke.steps
  assert smoke.model == full.model  # the smoke run exercises the networks of the full one
  task = tasks.make_task(full)
  params = jax.eval_shape(task.init, jax.random.key(0))
  axes = jax.tree.leaves(nn.get_partition_spec(params), is_leaf=lambda x: x is None)
  assert axes and None not in axes  # every parameter names its axes
  assert sum(x.size for x in jax.tree.leaves(params)) > 100_000


def test_stages_start_where_others_end(tmp_path):
  made = {s: tasks.make_task(parse(s, "full", tmp_path)) for s in STAGES}
  shapes = {s: nn.meta.unbox(jax.eval_shape(made[s].init, jax.random.key(0))) for s in STAGES}
  frozen = nn.meta.unbox(jax.eval_shape(made["ar_dtok"].init_frozen, jax.random.key(0)))["ta_tok"]
  trained = shapes["ta_tok"]
  for part in set(frozen) - {"quantizer"}:
    assert jax.tree.map(np.shape, frozen[part]) == jax.tree.map(np.shape, trained[part])
  assert jax.tree.map(np.shape, shapes["mllm"]) == jax.tree.map(np.shape, shapes["sft"])
  assert made["mllm"].used == base.TEXT_ROWS + 5 + base.CODES <= made["mllm"].net.vocab
  assert made["mllm"].net.width == made["ta_tok"].net.width  # or the codebook could not fill rows


def test_scales_of_steps(tmp_path):
  config = parse("ta_tok", "full", tmp_path)
  drawn = [draw_scale(config, step) for step in range(4000)]
  assert drawn == [draw_scale(config, step) for step in range(4000)]
  shares = np.bincount(drawn, minlength=4)[1:] / 4000
  wanted = np.array([config.scales[str(s)] for s in (1, 2, 3)])
  np.testing.assert_allclose(shares, wanted / wanted.sum(), atol=0.03)
  config.seed += 1
  assert drawn != [draw_scale(config, step) for step in range(4000)]
