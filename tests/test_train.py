import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from unittest import mock

import fake_stage
import flax.linen as nn
import jax
import numpy as np
import pytest

from tarjax import checkpoint, optim, saving, sharding, state, train
from tarjax.config import UserError, claim, finished, nearest, parse
from tarjax.convert.rules import flatten
from tarjax.nonfinite import Diverged

HERE = Path(__file__).parent


@pytest.fixture
def fake(monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # the in-process runs leave no cache
  fake_stage.install(monkeypatch.setattr, lambda name, m: monkeypatch.setitem(sys.modules, name, m))
  return fake_stage


def run(config, workdir, stop=()):
  workdir.mkdir(parents=True, exist_ok=True)
  claim(workdir, config)
  return train.train(config.copy_and_resolve_references(), workdir, list(stop), time.time())


def weights(workdir):
  return flatten(checkpoint.load(str(workdir)))


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_killed_runs_end_with_the_same_bits(tmp_path):
  """SIGKILL and SIGTERM at random moments, saving at every step, so also during saves."""
  file = fake_stage.config_file(tmp_path)

  def start(name):
    command = [sys.executable, HERE / "fake_stage.py", f"--config={file}"]
    command += [f"--workdir={tmp_path / name}", "--config.save_every=1", "--config.steps=20"]
    command += ["--config.keep=1"]
    command += ["--config.mesh.data=1", "--config.mesh.model=1", "--config.eval_every=0"]
    env = os.environ | {"PYTHONPATH": str(HERE.parent)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

  whole = start("whole")
  print(whole.communicate(timeout=300)[0])
  assert whole.returncode == 0
  rng = random.Random()
  for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
    process = start("killed")
    assert process.stdout
    for _ in range(rng.randint(1, 4)):  # it is about to train, or has printed up to three steps
      process.stdout.readline()
    time.sleep(rng.uniform(0, 0.3))
    process.send_signal(number)
    process.communicate(timeout=300)
    print(number, process.returncode, sorted((tmp_path / "killed" / "checkpoints").iterdir()))
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
  last = start("killed")
  assert "done" in last.communicate(timeout=300)[0] and last.returncode == 0
  a, b = weights(tmp_path / "whole"), weights(tmp_path / "killed")
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], name)
  whole_lines, killed_lines = lines(tmp_path / "whole"), lines(tmp_path / "killed")
  assert [x["step"] for x in killed_lines] == list(range(1, 21))
  assert [x["loss"] for x in killed_lines] == [x["loss"] for x in whole_lines]


def test_stop_and_resume_on_another_mesh(fake, tmp_path, capsys):
  config = fake.get_config()
  assert run(config, tmp_path / "a") == 0
  first = lines(tmp_path / "a")
  assert [x["step"] for x in first] == [4, 6, 8, 12]
  assert all({"loss", "lr", "grad_norm", "error", "codes_usage"} <= x.keys() for x in first)
  assert [("val/loss" in x) for x in first] == [False, True, False, True]
  assert {"val/loss_scale1", "val/loss_scale2"} & first[1].keys()
  assert first[-1]["loss"] < first[0]["loss"]
  done = finished(tmp_path / "a")
  assert done and done["steps"] == 12 and done["seconds"] > 0 and done["peak_gb"] > 0
  assert "up0/kernel" in (tmp_path / "a" / "params.txt").read_text()

  config = fake.get_config({"mesh.data": 8, "mesh.fsdp": 1, "mesh.model": 1, "eval_every": 0})
  stop: list[int] = []
  make_batches = fake.make_batches

  def stopping(*args, **kwargs):
    for i, batch in enumerate(make_batches(*args, **kwargs)):
      if i == 6:
        stop.append(signal.SIGTERM)
      yield batch

  sys.modules["tarjax.data.pipeline"].make_batches = stopping  # type: ignore[attr-defined]
  claim(tmp_path / "b", config)
  assert train.train(config, tmp_path / "b", stop, time.time()) == 143
  assert saving.Saver(tmp_path / "b", 2).latest() == 7
  sys.modules["tarjax.data.pipeline"].make_batches = make_batches  # type: ignore[attr-defined]
  config = fake.get_config({"mesh.data": 1, "mesh.fsdp": 4, "mesh.model": 2, "eval_every": 0})
  assert run(config, tmp_path / "b") == 0
  assert "from step 7" in capsys.readouterr().out
  assert [x["step"] for x in lines(tmp_path / "b")] == [4, 7, 8, 12]
  a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-5, err_msg=name)


def test_the_data_are_told_what_the_stage_can_learn_from(fake, tmp_path):
  spies = {n: mock.Mock(side_effect=getattr(fake, n)) for n in ("make_batches", "sample_ids")}
  vars(sys.modules["tarjax.data.pipeline"]).update(spies)
  assert run(fake.get_config({"model.bad": (3,)}), tmp_path / "run") == 0
  calls = [spy.call_args_list for spy in spies.values()]
  assert all(calls) and all(c.kwargs["fields"] is fake.Task.fields for c in itertools.chain(*calls))


def test_what_the_data_say_ends_the_run_in_a_sentence(fake, tmp_path, monkeypatch):
  def damaged(*args, **kwargs):
    yield from itertools.islice(fake.make_batches(*args, **kwargs), 3)
    raise ValueError("7 of 40 records read are damaged")

  monkeypatch.setattr(sys.modules["tarjax.data.pipeline"], "make_batches", damaged)
  for changes in ({"eval_every": 0}, {"eval_every": 2, "eval_batches": 4}):
    with pytest.raises(UserError, match="7 of 40 records"):
      run(fake.get_config(changes), tmp_path / str(changes["eval_every"]))


ALONE = {"mesh.data": 8, "mesh.fsdp": 1, "mesh.model": 1, "eval_every": 0, "model.scales": (1,)}


def listed(workdir):
  return [json.loads(x) for x in (workdir / "nonfinite.jsonl").read_text().splitlines()]


def test_a_step_that_is_not_finite_changes_only_the_count(fake):
  config = fake.get_config({"model.bad": (0,)})
  mesh = sharding.make_mesh({"data": -1})
  with jax.set_mesh(mesh):
    task = fake.Task(config)
    optimizer = optim.make_optimizer(config.optim, config.steps)
    layout = state.make_layout(task, optimizer, mesh)
    schedule = optim.make_schedule(config.optim, config.steps)
    key, _ = state.make_keys(0, mesh)
    params = jax.jit(lambda k: nn.meta.unbox(task.init(k)))(key)
    frozen = jax.jit(lambda k: nn.meta.unbox(task.init_frozen(k)))(key)
    run, _ = state.Programs(task, optimizer, schedule, layout, mesh)(True, {"scale": 1})
    now = state.TrainState(state.put_step(0, mesh), params, optimizer.init(params))
    before = jax.device_get(now)
    batches = fake.make_batches(config, sharding=sharding.batch_sharding(mesh))
    now, values = run(now, frozen, next(batches), key)
    assert values["skipped"] and np.isnan(values["loss"]) and int(now.step) == 1
    jax.tree.map(np.testing.assert_array_equal, before[1:], jax.device_get(now)[1:])
    now, values = run(now, frozen, next(batches), key)
    assert not values["skipped"] and int(now.step) == 2
    assert not np.array_equal(before.params["up0"]["kernel"], now.params["up0"]["kernel"])


def test_too_many_losses_that_are_not_finite_stop_the_run(fake, tmp_path):
  config = fake.get_config(ALONE | {"model.bad": tuple(range(5, 99)), "nonfinite_limit": 3})
  with pytest.raises(Diverged, match="3 steps in a row, up to 8"):
    run(config, tmp_path)
  assert saving.Saver(tmp_path, 2).latest() == 4
  assert [(x["step"], x["batch"]) for x in listed(tmp_path)] == [(6, 5), (7, 6), (8, 7)]
  assert listed(tmp_path)[0]["ids"] == [f"train/5/{row}" for row in range(16)]


def test_a_few_skipped_steps_are_counted(fake, tmp_path):
  assert run(fake.get_config(ALONE | {"model.bad": (5, 9)}), tmp_path) == 0
  assert [x["skipped"] for x in lines(tmp_path)] == [0, 1, 1]
  assert all(np.isfinite(x["loss"]) for x in lines(tmp_path))


def test_rewinding_passes_over_the_window(fake, tmp_path, monkeypatch):
  """The run of the stream without the batches from the save to the last bad one; also resumed."""
  changes = ALONE | {"nonfinite_limit": 2, "nonfinite_then": "rewind"}
  config = fake.get_config(changes | {"model.bad": (5, 6, 8)})
  assert run(config, tmp_path / "a") == 0
  assert [(x["step"], x["batch"]) for x in listed(tmp_path / "a")] == [(6, 5), (7, 6), (6, 8)]
  assert [x["step"] for x in lines(tmp_path / "a")] == [4, 8, 12]
  _, _, meta = restored(tmp_path / "a", 12)
  assert meta["next_batch"] == 15

  make_batches, pipeline = fake.make_batches, sys.modules["tarjax.data.pipeline"]
  stop: list[int] = []

  def stopping(*args, **kwargs):
    for i, batch in enumerate(make_batches(*args, **kwargs)):
      if kwargs["start_step"] == 7 and i == 3:
        stop.append(signal.SIGTERM)
      yield batch

  monkeypatch.setattr(pipeline, "make_batches", stopping)
  claim(tmp_path / "b", config)
  assert train.train(config.copy_and_resolve_references(), tmp_path / "b", stop, time.time()) == 143
  assert saving.Saver(tmp_path / "b", 2).latest() == 8
  monkeypatch.setattr(pipeline, "make_batches", make_batches)
  assert run(config, tmp_path / "b") == 0

  monkeypatch.setattr(pipeline, "make_batches", without_batches(make_batches, (4, 5, 6)))
  assert run(fake.get_config(changes | {"model.bad": (8,)}), tmp_path / "c") == 0
  a, b, c = (weights(tmp_path / name) for name in "abc")
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], name)
    np.testing.assert_array_equal(a[name], c[name], name)


def without_batches(make_batches, gone):
  def made(*args, start_step=0, **kwargs):
    for number, batch in enumerate(make_batches(*args, start_step=0, **kwargs)):
      if number not in gone:
        yield batch

  return made


def restored(workdir, step):
  folder = workdir / "checkpoints" / str(step) / "meta" / "metadata"
  return None, None, json.loads(folder.read_text())


def test_a_full_disk_costs_saves_but_not_the_run(fake, tmp_path, monkeypatch, capsys):
  """From batch 4 to 8 no file may grow beyond 1 MB, and the weights are larger."""
  changes = ALONE | {"model.width": 2**17, "save_every": 2, "eval_every": 0}
  make_batches = fake.make_batches
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def full(*args, **kwargs):
    for i, batch in enumerate(make_batches(*args, **kwargs)):
      resource.setrlimit(resource.RLIMIT_FSIZE, (2**20 if 4 <= i < 8 else soft, hard))
      yield batch

  monkeypatch.setattr(sys.modules["tarjax.data.pipeline"], "make_batches", full)
  try:
    assert run(fake.get_config(changes), tmp_path) == 0
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert "is not saved: OUT_OF_RANGE" in capsys.readouterr().out
  assert [x["step"] for x in lines(tmp_path)] == [2, 4, 6, 8, 10, 12]
  assert sorted(x.name for x in (tmp_path / "checkpoints").iterdir())[0].isdigit()
  assert saving.Saver(tmp_path, 2).latest() == 12


def test_profile_and_wandb_when_asked(fake, tmp_path, monkeypatch):
  logged: list = []
  wandb = types.ModuleType("wandb")
  wandb.init = lambda **kwargs: logged.append(kwargs) or wandb  # type: ignore[attr-defined]
  wandb.log = lambda values, step: logged.append((step, values["loss"]))  # type: ignore[attr-defined]
  wandb.finish = lambda: logged.append("end")  # type: ignore[attr-defined]
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  config = fake.get_config(ALONE | {"profile_steps": "5:7", "wandb": "tar"})
  assert run(config, tmp_path / "run") == 0
  assert len(list((tmp_path / "run").glob("plugins/profile/*/*.xplane.pb"))) == 1
  assert logged[0]["project"] == "tar" and logged[0]["config"]["steps"] == 12
  assert [x[0] for x in logged[1:-1]] == [4, 8, 12] and logged[-1] == "end"
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match="pip install wandb"):
    run(config, tmp_path / "other")


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"mesh.data": 3}, "does not fit 8 devices"),
    ({"model.width": 9}, r"down0/kernel \(9, 8\) does not divide"),
    ({"batch": 6}, "batch=6 does not divide .* = 4: config.mesh is data=2, fsdp=2"),
    ({"optim.name": "sgd"}, "is none of"),
    ({"optim.warmup": 12}, "must be shorter than steps=12"),
    ({"dont_load": []}, "(?s)neither loaded nor computed.*frozen/teacher/up0/kernel"),
  ],
)
def test_mistakes_are_told(fake, tmp_path, changes, message):
  config = fake.get_config()
  config.update(fake.get_config({k: v for k, v in changes.items() if k != "dont_load"}))
  if "dont_load" in changes:
    config.dont_load = []
  with pytest.raises(UserError, match=message):
    run(config, tmp_path)


def test_starting_points(fake, tmp_path):
  """One run's weights into two places of the next; what is not loaded must be named."""
  mesh = sharding.make_mesh({"data": -1})

  def begin(config, workdir):
    with jax.set_mesh(mesh):
      task = fake.Task(config)
      optimizer = optim.make_optimizer(config.optim, config.steps)
      layout = state.make_layout(task, optimizer, mesh)
      key, _ = state.make_keys(config.seed, mesh)
      return state.begin(task, config, optimizer, layout, key, workdir, mesh, dict)

  first, _ = begin(fake.get_config(), tmp_path / "a")
  saver = saving.Saver(tmp_path / "a", 1)
  saver.save(3, first, {})
  saver.close()
  config = fake.get_config({"seed": 4})
  config.init = {"up0": "../a:up0", "down0": "../a@3:down0"}
  config.frozen = {"teacher/up0": "../a:up1", "teacher/down0": "../a:down1"}
  config.dont_load = []
  with pytest.raises(UserError, match="(?s)neither loaded nor computed.*down1/kernel.*up1/kernel"):
    begin(config, tmp_path / "b")
  config.dont_load = ["down1", "up1"]
  second, frozen = begin(config, tmp_path / "b")
  a, b, saved = weights(tmp_path / "a"), flatten(second.params), tmp_path / "b"
  for name in a:
    same = np.array_equal(a[name], b[name])
    assert same == (name.split("/")[0] in ("up0", "down0")) or not a[name].any()
  for tree in (flatten(frozen), flatten(checkpoint.load_frozen(saved))):
    for part in ("up", "down"):
      np.testing.assert_array_equal(tree[f"teacher/{part}0/kernel"], a[f"{part}1/kernel"])


def command(tmp_path, *more):
  file = fake_stage.config_file(tmp_path)
  return [f"--config={file}", f"--workdir={tmp_path / 'run'}", *more]


@pytest.mark.parametrize(
  "more, words",
  [
    (["--config.optim.lrr=3"], ["optim.lrr", "'optim.lr'"]),
    (["--config.stepz=3"], ["stepz", "'steps'"]),
    (["--config.width=3"], ["width", "'model.width'"]),
    (["--config.steps=abc"], ["steps=abc"]),
    (["--config.steps=0"], ["config.steps=0"]),
    (["--config.seed=-1"], ["config.seed=-1"]),
    (["--config.profile_steps=9:3"], ["config.profile_steps='9:3'", "a:b"]),
    (["--config.nonfinite_then=go"], ["config.nonfinite_then='go'"]),
    (["--config.nonfinite_limt=3"], ["nonfinite_limt", "'nonfinite_limit'"]),
    (["--config.task=mlm"], ["'mlm'", "mllm"]),
    (["--wrkdir=x"], ["wrkdir", "workdir"]),
    (["stray"], ["stray"]),
    (["--config=none.py"], ["none.py", "does not exist"]),
  ],
)
def test_command_line_mistakes_exit_2(fake, tmp_path, capsys, more, words):
  assert train.main(command(tmp_path, *more), time.time()) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and all(word in error for word in words), error
  assert not (tmp_path / "run").exists()


def test_how_data_are_read_may_be_changed_where_the_config_is_silent(fake, tmp_path):
  argv = command(tmp_path)
  claim(tmp_path / "run", parse(argv)[0])
  (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
  changed, workdir = parse([*argv, "--config.data.max_damaged=0.25", "--config.data.workers=3"])
  assert (changed.data.max_damaged, changed.data.workers, changed.data.threads) == (0.25, 3, 1)
  claim(workdir, changed)  # no other run


def test_a_key_that_nothing_reads(fake, tmp_path, capsys):
  argv = command(tmp_path)
  file = tmp_path / "fake_config.py"
  file.write_text(file.read_text().replace("keep=2", "keep=2, log_evry=3"))
  assert train.main(argv, time.time()) == 2
  assert "nothing reads config.log_evry; the nearest key is log_every" in capsys.readouterr().err
  file.write_text(file.read_text().replace("log_evry=3,", "").replace("clip=1.0", ""))
  file.write_text(file.read_text().replace("keep=2, log_evry=3", "keep=2"))
  assert train.main(argv, time.time()) == 2
  assert "config.optim.clip is missing" in capsys.readouterr().err


def test_finished_and_foreign_workdirs(fake, tmp_path, capsys):
  argv = command(tmp_path)
  config, workdir = parse(argv)
  claim(workdir, config)
  assert checkpoint.read_config(workdir).optim.lr == 1e-2
  (workdir / "done.json").write_text('{"steps": 12, "seconds": 3.0}')
  (workdir / "checkpoints" / "12").mkdir(parents=True)
  assert train.main(argv, time.time()) == 0
  assert "is done: 12 steps" in capsys.readouterr().out
  assert train.main([*argv, "--config.keep=5", "--config.mesh.data=1"], time.time()) == 0
  assert train.main([*argv, "--config.optim.lr=0.5"], time.time()) == 2
  assert "optim.lr (0.01 there, 0.5 here)" in capsys.readouterr().err


def test_nearest():
  names = ["optim.lr", "optim.warmup", "data.length", "steps"]
  assert nearest("lr", names) == "optim.lr"
  assert nearest("data.lenght", names) == "data.length"
  assert nearest("optm.warmup", names) == "optim.warmup"


def test_eight_devices():
  assert jax.device_count() == 8
