"""Trains one stage of Tar:

  python -m tarjax.train --config=configs/digits/mllm.py[:variant] --workdir=DIR
      [--config.key=value ...]

Run it again after any interruption and it goes on from its last save; a finished run says so.
Exit codes: 0 done, 1 the loss is not finite, 2 a mistake in the command or config, 128 + n stopped
by signal n after saving (143 for SIGTERM).
"""

import collections
import contextlib
import functools
import hashlib
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

from tarjax.config import FREE, UserError, claim, finished, parse, plain, told, write_json

IN_FLIGHT = 4  # steps that may be queued on the devices


class Diverged(Exception):
  """The loss or the gradient is not finite."""


def main(argv: list[str], began: float) -> int:
  """The verb. Nothing heavy is imported before it is clear that there is work."""
  if {"--help", "-h"} & set(argv):
    print(__doc__)
    return 0
  try:
    config, workdir = parse(argv)
    claim(workdir, config)
    if done := finished(workdir):
      print(f"{workdir} is done: {done['steps']} steps in {done['seconds']:.0f} s")
      return 0
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, lambda n, _: stop.append(n))
    return train(config, workdir, stop, began)
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  except Diverged as e:
    print(f"stopped: {e}", file=sys.stderr)
    return 1


def train(config, workdir: Path, stop: list[int], began: float) -> int:
  """The loop. `stop` is filled by signal handlers; returns the exit code."""
  import jax
  import numpy as np

  from tarjax import checkpoint, chips, metrics, optim, sharding, stamps, tasks
  from tarjax import state as states
  from tarjax.data import damage
  from tarjax.data.pipeline import make_batches
  from tarjax.evals.loss import Evaluator

  with config.unlocked():
    config.workdir = str(workdir)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # restarts skip the compiler
    jax.config.update("jax_compilation_cache_dir", str(workdir.parent / ".jax_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  say = (progress := metrics.Progress(workdir.name, config.steps)).say

  # --- mesh ------------------------------------------------------------------------------------
  with told():
    mesh = sharding.make_mesh(config.mesh.to_dict())
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch % split:
      raise UserError(f"config.batch={config.batch} does not divide over data x fsdp = {split}")
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    # --- state: shapes and shardings only ------------------------------------------------------
    with told(TypeError):
      task = tasks.make_task(config)
    optimizer = optim.make_optimizer(config.optim, config.steps)
    schedule = optim.make_schedule(config.optim, config.steps)
    with told():
      layout = states.make_layout(task, optimizer, mesh)
    options = chips.compiler_options(config, jax.devices())
    programs = states.Programs(task, optimizer, schedule, layout, mesh, options)
    init_key, key = states.make_keys(config.seed, mesh)
    (workdir / "params.txt").write_text(states.parameter_table(layout))

    with told():
      stamps.verify(config, workdir)

    # --- restore -------------------------------------------------------------------------------
    saver = stack.enter_context(contextlib.closing(checkpoint.Saver(workdir, config.keep)))
    meta = {"seed": config.seed, "data": fingerprint(config.data)}
    start = saver.latest() or 0
    if start:
      state, frozen = states.restore(saver, start, layout, meta, workdir, mesh)
    else:
      batch = functools.partial(first_batch, config)
      state, frozen = states.begin(task, config, optimizer, layout, init_key, workdir, mesh, batch)
    trained, kept = (sum(x.size for x in jax.tree.leaves(t)) for t in (state.params, frozen))
    say(
      f"{workdir.name}: {trained:,} trained and {kept:,} frozen values on {dict(mesh.shape)} "
      f"{jax.default_backend()}, " + (f"from step {start}" if start else "from the beginning")
    )

    # --- data: a pure function of (seed, step), so a start is all there is to restore -----------
    place = sharding.batch_sharding(mesh)

    def read(split, first):
      with told():
        made = make_batches(config, start_step=first, sharding=place, split=split)
      return tell(made)

    batches = stack.enter_context(contextlib.closing(read("train", start)))

    def predict(state, batch, index, static):
      index = jax.device_put(np.int32(index), sharding.replicated(mesh))
      return programs(False, static)[0](state.params, frozen, batch, key, index)

    evaluator = Evaluator(
      predict,
      batches=lambda: read("test", 0),
      static=task.static,
      count=config.eval_batches,
    )
    clock = metrics.Clock(workdir, began)
    writer = stack.enter_context(contextlib.closing(metrics.Writer(workdir, start)))
    meter = metrics.Meter(config.batch, config.model.get("codes"))
    queue = collections.deque()
    step, stopping = start, bool(stop)

    while step < config.steps and not stopping:
      # --- step --------------------------------------------------------------------------------
      run, first = programs(True, task.static(step))
      waiting = time.perf_counter()
      batch = next(batches)
      running = time.perf_counter()
      with jax.transfer_guard("disallow"):
        state, values = run(state, frozen, batch, key)
      compiled = time.perf_counter() - running if first else 0.0
      meter.add(values, waited=running - waiting, compiled=compiled)
      queue.append(values["loss"])
      if len(queue) > IN_FLIGHT:
        queue.popleft().block_until_ready()
      step += 1

      # --- log: before the save, so that a restored step always has its line --------------------
      stopping, last = bool(stop), step == config.steps
      save = step % config.save_every == 0 or last or stopping
      evaluate = bool(config.eval_every) and (step % config.eval_every == 0 or last)
      if not (save or evaluate or step % config.log_every == 0):
        continue
      values = meter.read()
      check_finite(step, values)
      if evaluate:
        values |= dict(evaluator.run(state))
        meter.restart()
      writer.write(step, values)
      progress.show(step, values)
      clock.read(step)

      # --- save: in the background ---------------------------------------------------------------
      if save:
        saver.save(step, state, dict(meta, next_step=step))

  # --- end: the saver has finished ---------------------------------------------------------------
  timing = clock.read(step)
  if damaged := len(damage.listed(workdir)):
    say(f"{workdir.name}: {damaged} damaged records were passed over: {workdir / damage.FILE}")
  if step < config.steps:
    say(f"{workdir.name}: stopped by signal {stop[0]} at step {step}; run it again to go on")
    return 128 + stop[0]
  write_json(workdir / "done.json", timing)
  say(f"{workdir.name}: done, {timing['seconds']:.0f} s, peak {timing['peak_gb']:.1f} GB")
  return 0


def first_batch(config) -> dict:
  """The first global batch of a run as numpy arrays, the same on every process."""
  from tarjax.data.pipeline import make_batches

  with told(), contextlib.closing(make_batches(config, split="train")) as batches:
    return next(batches)


def tell(batches):
  """Yields from `batches`, whose mistakes become UserErrors."""
  with told():
    yield from batches


def check_finite(step: int, values: dict[str, float]) -> None:
  """Raises Diverged when the loss or the gradient norm of a step since the last line is not."""
  for name in ("loss", "grad_norm"):
    if not math.isfinite(values[name]):
      raise Diverged(
        f"{name} is {values[name]} at step {step}; the last save is from before: "
        "lower optim.lr or look at the data"
      )


def fingerprint(data) -> str:
  """What the samples depend on, as a short hash."""
  content = {k: v for k, v in plain(data).items() if f"data/{k}" not in FREE}
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:], time.time()))
