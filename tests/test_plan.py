"""plan: what it refuses, what it counts, and (where libtpu is installed) a small stage compiled."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarjax import chips, costs, hlo, plan, sweep
from tarjax.config import UserError, parse
from tarjax.models import attention
from tarjax.stage import make_stage

CONFIG = "--config=configs/mllm.py:tiny"
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="requirements-tpu.txt is not installed"
)


@pytest.mark.parametrize(
  "flags, said",
  [
    ([], "give --topology=CHIP:SHAPE"),
    (["--topology=v5litepod:4x4"], "unknown topology 'v5litepod:4x4'; usual ones are v5e: 2x2"),
    (["--topology=v5p"], "unknown topology 'v5p'"),
    (["--topology=v5p:0x4x4"], "unknown topology"),
    (["--topology=v5p:4x4x4", "--slices=two"], "--slices=two is not a number"),
    (["--topology=v5p:4x4x4", "--json=yes"], "--json takes no value"),
    (["--topology=v5p:4x4x4", "--config.batchh=3"], "batchh"),
  ],
)
def test_mistakes_are_told_in_one_sentence(flags, said, capsys):
  assert plan.main([CONFIG, *flags]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_without_libtpu_the_file_to_install_is_named(monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  assert plan.main([CONFIG, "--topology=v5e:4x4"]) == 2
  assert "pip install -r requirements-tpu.txt" in capsys.readouterr().err


def test_a_mesh_that_does_not_fit_is_refused():
  config, _ = parse([CONFIG, "--workdir=plan", "--config.mesh.fsdp=3"])
  with pytest.raises(UserError, match="does not fit 8 devices"):
    make_stage(config)
  config, _ = parse([CONFIG, "--workdir=plan", "--config.batch=6"])
  with pytest.raises(UserError, match="batch=6 does not divide .* = 4: config.mesh is data="):
    make_stage(config)


def test_bytes_per_chip_are_those_of_the_shards():
  config, _ = parse([CONFIG, "--workdir=plan"])
  stage = make_stage(config)
  held = plan.sizes(stage, {"total": 0.0, "limit": 1.0})["bytes_per_chip"]
  each = [x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(stage.layout.params)]
  assert held["parameters"] == sum(4 * np.prod(shape) for shape in each)
  assert held["optimizer"] == 2 * held["parameters"] + 4 * 2  # and two counters
  assert held["batch"] == 4 * 4 * config.batch * config.data.length / 4


def test_operations_of_a_trace():
  def loss(w, x):
    def layer(x, w):
      return jnp.tanh(x @ w), None

    return jax.lax.scan(layer, x, w)[0].sum()

  w, x = jnp.zeros((3, 8, 8)), jnp.zeros((4, 8))
  forward = 3 * 2 * 4 * 8 * 8
  assert costs.traced_flops(jax.make_jaxpr(loss)(w, x).jaxpr) == forward
  assert costs.traced_flops(jax.make_jaxpr(jax.grad(loss, (0, 1)))(w, x).jaxpr) == 3 * forward
  q = jnp.zeros((2, 16, 4, 8))
  attend = jax.make_jaxpr(lambda q: attention.attend(q, q, q, causal=True))(q)
  assert costs.traced_flops(attend.jaxpr) == 2 * (2 * 4) * 16 * 16 * 8 * 2 / 2


@pytest.mark.parametrize("length", [64, 320])
def test_the_models_operations_are_six_per_weight_and_token(length):
  """And attention's, of which a causal one counts half, however long."""
  config, _ = parse([CONFIG, "--workdir=plan", f"--config.data.length={length}"])
  stage = make_stage(config)
  m, tokens = config.model, config.batch * config.data.length
  heads = m.head_dim * (2 * m.heads + 2 * m.kv_heads)
  weights = m.depth * (m.width * heads + 3 * m.width * m.mlp) + m.vocab * m.width
  attend = m.depth * 6 * config.data.length * m.heads * m.head_dim
  got = stage.model_flops({})
  chunks = -(-config.data.length // config.loss_chunk) * config.loss_chunk / config.data.length
  padded = 6 * tokens * m.vocab * m.width * (chunks - 1)
  assert got == pytest.approx(6 * tokens * weights + tokens * attend + padded, rel=1e-6)


@pytest.mark.parametrize(
  "file", ["vqvae.py:tiny", "ta_tok.py:tiny", "ar_dtok.py:256_tiny", "dif_dtok.py:tiny"]
)
def test_every_stage_has_its_operations_counted(file):
  """Twice as many for twice the batch, of networks with and without `remat`."""
  counts = []
  for batch in (8, 16):
    argv = [f"--config=configs/{file}", "--workdir=plan", f"--config.batch={batch}"]
    config, _ = parse([*argv, "--config.mesh.fsdp=2"])
    stage = make_stage(config)
    counts.append(stage.model_flops({"scale": 2} if "scales" in config else {}))
  assert counts[0] > 1e6 and 1.8 < counts[1] / counts[0] <= 2  # a codebook is of no batch


@pytest.mark.parametrize("masks", [2, 3])
@pytest.mark.parametrize("q, k", [((12, 2048, 128), (2, 2048, 128)), ((16, 729, 128),) * 2])
def test_kernels_of_one_example_a_chip_have_no_axis_for_it(q, k, masks):
  """As the compiler writes them: which blocks are masked, queries, keys, values, segments."""
  rest = [(q[1], 128), (8, k[1])]
  without = costs.queries_and_keys([(1, 2, 2)] * masks + [q, k, k] + rest)
  assert without == costs.queries_and_keys([(1, 2, 2)] * masks + [(1, *q), (1, *k), (1, *k)] + rest)
  assert without == ((1, *q), (1, *k))


def test_the_compilers_refusal_says_how_much():
  used = costs.needed("RESOURCE_EXHAUSTED: Used 98.38G of 95.74G hbm. Exceeded by 2.64G.")
  assert used == {"total": 98.38 * 2**30, "limit": 95.74 * 2**30}
  assert costs.needed("RESOURCE_EXHAUSTED: 1.5T exceeds 512.00M")["limit"] == 2**29


def test_axes_of_the_torus():
  line = [[i, 0, 0] for i in range(4)]
  assert chips.axes_spanned(line, [4, 4, 4], "v5p") == 1
  assert chips.axes_spanned([[i, j, 0] for i in range(4) for j in range(4)], [4, 4, 4], "v5p") == 2
  assert chips.axes_spanned([[i, 0] for i in range(8)], [8, 8], "v6e") == 0.5  # no wrap-around
  assert chips.axes_spanned([[i, 0] for i in range(16)], [16, 16], "v5e") == 1


def test_sweep_keeps_the_best_of_each_kind(capsys):
  config, _ = parse([CONFIG, "--workdir=plan"])

  def attempt(trial):
    if trial.mesh.fsdp > 8:
      raise UserError("too many")
    if trial.model.remat == "full":
      return {"fits": False, "reason": "no room"}
    fast = {2: 2.0, 4: 1.0, 8: 3.0}.get(trial.mesh.fsdp, 4.0)
    saved = 0.5 if trial.model.remat == "attn" else 1.0
    held = {"bytes_per_chip": {"total": 1.0}, "mesh": trial.mesh.to_dict(), "mfu": 0.1}
    return held | {"fits": True, "step_seconds": fast * saved * (trial.batch / 16) ** 1.5}

  assert sweep.sweep(config, attempt, True) == 0
  out = json.loads(capsys.readouterr().out)
  best = {"mesh.data": -1, "mesh.fsdp": 4, "model.remat": "attn", "batch": 8}
  assert out["best"]["change"] == best
  assert sweep.sweep(config, attempt, False) == 0
  said = capsys.readouterr().out
  assert "--config.mesh.fsdp=4" in said and "does not fit: too many" in said
  assert sweep.sweep(config, lambda trial: {"fits": False, "reason": "no"}, False) == 1


@needs_libtpu
def test_a_small_stage_compiled_for_four_chips(capsys):
  flags = ["--topology=v5e:2x2", "--json", "--config.mesh.data=2", "--config.mesh.fsdp=2"]
  with jax.default_matmul_precision("default"):  # a run's, and not that of the other tests
    assert plan.main([CONFIG, *flags, "--config.mesh.model=1"]) == 0
  result = json.loads(capsys.readouterr().out)
  assert result["fits"] and 0 < result["mfu"] < 1 and result["step_seconds"] > 0
  config, _ = parse([CONFIG, "--workdir=plan"])
  tokens = config.batch * config.data.length
  assert result["tokens_per_second"] == pytest.approx(tokens / result["step_seconds"])
  assert result["bytes_per_chip"]["total"] < result["bytes_per_chip"]["limit"]
  assert {"all-gather", "reduce-scatter"} & set(result["collectives"]) and result["chip_hours"] > 0


@needs_libtpu
@pytest.mark.parametrize("model", [1, 2])
def test_the_search_for_words_compares_in_full_on_tpu(model):
  """Whether or not the codebook is sharded: the compiler would narrow a minimum to bfloat16."""
  mesh = [
    "--config.mesh.data=1",
    f"--config.mesh.fsdp={4 // model}",
    f"--config.mesh.model={model}",
  ]
  config, _ = parse(["--config=configs/ta_tok.py:tiny", "--workdir=plan", *mesh])
  plan.quiet_libtpu()
  _, devices = plan.describe("v5e:2x2", 1)
  with jax.default_matmul_precision("default"):
    text = plan.compiled_steps(config, devices).compile({"scale": 1}).as_text()
  computations = hlo.Program(text).computations.values()
  pairs = [i for body in computations for i in body if i.opcode == "reduce" and len(i.arrays) == 2]
  searches = [i for i in pairs if "quantize" in i.op_name]
  assert len(searches) == model
  assert all([kind for kind, *_ in i.arrays] == ["s32", "s32"] for i in searches)
