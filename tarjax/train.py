"""Trains one stage of Tar:

  python -m tarjax.train --config=configs/digits/mllm.py[:variant] --workdir=DIR
      [--config.key=value ...]

Run it again after any interruption and it goes on from its last save; a finished run says so.
launch/local.sh starts it on several processes.
Exit codes: 0 done, 1 it cannot go on (losses that are not finite, a last save that failed), 2 a
mistake in the command or config, 3 a step hung, 4 the codebook collapsed (config.min_usage), 128 +
n stopped by signal n after saving (143 for SIGTERM; on several processes it is always 143).
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from tarjax import collapse, distributed
from tarjax.config import FREE, UserError, claim, finished, parse, plain, steps_of, told, write_json
from tarjax.nonfinite import Diverged, NonFinite
from tarjax.watchdog import Watchdog

IN_FLIGHT = 4  # steps that may be queued on the devices


def main(argv: list[str], began: float) -> int:
  """The verb. Nothing heavy is imported before it is clear that there is work."""
  if {"--help", "-h"} & set(argv):
    print(__doc__)
    return 0
  stop: list[int] = []
  together = False  # the processes of a run end as one
  try:
    config, workdir = parse(argv)
    claim(workdir, config)
    if done := finished(workdir):
      print(f"{workdir} is done: {done['steps']} steps in {done['seconds']:.0f} s")
      return 0
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, lambda n, _: stop.append(n))
    code, together = train(config, workdir, stop, began), True
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    code = 2
  except Diverged as e:
    print(f"stopped: {e}", file=sys.stderr)
    code, together = e.code, True
  except Exception:
    traceback.print_exc()
    code = 1
  return distributed.leave(code, together)


def train(config, workdir: Path, stop: list[int], began: float) -> int:
  """The loop. `stop` is filled by signal handlers; returns the exit code."""
  distributed.start(stop)
  import jax
  import numpy as np

  from tarjax import metrics, optim, profiling, saving, sharding, stamps, writers
  from tarjax import state as states
  from tarjax.data import damage
  from tarjax.data.pipeline import make_batches, sample_ids
  from tarjax.evals.inside import Evaluators
  from tarjax.evals.loss import Evaluator
  from tarjax.stage import make_stage

  with config.unlocked():
    config.workdir = str(workdir)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # restarts skip the compiler
    jax.config.update("jax_compilation_cache_dir", str(workdir.parent / ".jax_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  say = (progress := writers.Progress(workdir.name, config.steps)).say
  first_process = jax.process_index() == 0

  # --- mesh, state: shapes and shardings ----------------------------------------------------------
  stage = make_stage(config)
  config, mesh, task, layout = stage.config, stage.mesh, stage.task, stage.layout
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    closing = lambda x: stack.enter_context(contextlib.closing(x))  # noqa: E731
    programs = stage.programs()
    init_key, key = states.make_keys(config.seed, mesh)
    with told():
      stamps.verify(config, workdir)

    # --- restore -------------------------------------------------------------------------------
    saver = closing(saving.Saver(workdir, config.keep, config.keep_every, say))
    meta = {"seed": config.seed, "data": fingerprint(config.data)}
    fields = getattr(task, "fields", None)

    def begin():
      """Where the run goes on: (step, state, frozen, number of the next batch)."""
      if at := saver.latest():
        return at, *states.restore(saver, at, layout, meta, workdir, mesh)
      batch = functools.partial(first_batches, config, fields)
      made = states.begin(task, config, stage.optimizer, layout, init_key, workdir, mesh, batch)
      return 0, *made, 0

    step, state, frozen, number = begin()
    trained, kept = (sum(x.size for x in jax.tree.leaves(t)) for t in (state.params, frozen))
    if not step and first_process:
      table = states.parameter_table(layout)
      (workdir / "params.txt").write_text(table)
      say(table.rstrip())
    say(
      f"{workdir.name}: {trained:,} trained and {kept:,} frozen values on {dict(mesh.shape)} "
      f"{jax.default_backend()}, " + (f"from step {step}" if step else "from the beginning")
    )

    # --- data: a pure function of (seed, number), so a start is all there is to restore ---------
    place = sharding.batch_sharding(mesh)

    def read(split, first):
      with told():
        made = make_batches(config, start_step=first, sharding=place, split=split, fields=fields)
      return tell(made)

    batches = closing(read("train", number))
    watchdog = closing(
      Watchdog(config.hang_seconds, f"process {jax.process_index()} of {jax.process_count()}")
    )

    def predict(state, batch, index, static):
      program, new = programs(False, static)
      watchdog.pause() if new else watchdog.beat()
      index = jax.device_put(np.int32(index), sharding.replicated(mesh))
      given = (optim.averaged(state.opt, state.params), frozen, batch, key, index)
      if new:
        distributed.compile_together(program, *given)
      return program(*given)

    evaluator = Evaluator(
      predict,
      batches=lambda: read("test", 0),
      static=task.static,
      count=config.eval_batches,
    )
    evaluators = Evaluators(config, mesh)
    clock = metrics.Clock(workdir, began)
    writer = closing(writers.Writer(workdir, step, config.wandb, plain(config)))
    meter = metrics.Meter(config.batch, config.model.get("codes"))
    trace = closing(profiling.Trace(steps_of(config.profile_steps), workdir))
    ids = functools.cache(lambda: sample_ids(config, fields=fields))  # only if it is asked
    limit, then = config.nonfinite_limit, config.nonfinite_then
    faults = NonFinite(workdir, limit, then, lambda n: ids()(n), say, first_process)
    asked = distributed.Stop(stop)
    queue = collections.deque()
    stopping = bool(stop) and not asked.many
    clock.start()

    while step < config.steps and not stopping:
      # --- step --------------------------------------------------------------------------------
      trace.at(step, state)
      run, first = programs(True, task.static(step))
      waiting = time.perf_counter()
      batch = next(batches)
      running = time.perf_counter()
      if first:  # it compiles, which takes as long as it takes
        watchdog.pause()
        distributed.compile_together(run, state, frozen, batch, key)
      with jax.transfer_guard("disallow"):
        state, values = run(state, frozen, batch, key)
      started = time.perf_counter()
      waited, compiled = running - waiting, started - running if first else 0.0
      meter.add(values, waited=waited, compiled=compiled, tokens=tokens_of(batch))
      clock.add("data", waited)
      clock.add("compile", compiled)
      step, number = step + 1, number + 1
      queue.append((step, number - 1, values))

      # --- look at the steps that are done: all of them, if there is more to do than that -------
      stopping, last = asked(), step == config.steps
      save = step % config.save_every == 0 or last or stopping
      evaluate = bool(config.eval_every) and (step % config.eval_every == 0 or last)
      more = save or evaluate or step % config.log_every == 0
      while len(queue) > (0 if more else IN_FLIGHT) and not faults.too_many:
        faults.look(*(seen := queue.popleft()))
      meter.blocked(time.perf_counter() - started)
      watchdog.beat()

      # --- rewind: the last save again, with the batches after the bad ones ---------------------
      if faults.too_many:
        watchdog.pause()
        saver.wait()
        faults.rewind(seen[0], saver.latest())
        batches.close()
        state = frozen = values = None  # make room on the devices
        queue.clear()
        step, state, frozen, _ = begin()
        number = seen[1] + 1
        batches = closing(read("train", number))
        writer.rewind(step)
        meter.restart()
        continue

      # --- log: before the save, so that a restored step always has its line --------------------
      if not more:
        continue
      values = meter.read()
      if evaluate:
        with clock.during("eval"):
          values |= dict(evaluator.run(state))
          if not stopping:
            watchdog.pause()
            values |= dict(evaluators.run(state, frozen))
        meter.restart()
      writer.write(step, values)
      progress.show(step, values)
      clock.read(step)
      collapse.look(config, step, values)

      # --- save: in the background; while steps are being skipped the save before is the good one
      if save and (last or not faults.row):
        with clock.during("save"):
          if last or stopping:
            watchdog.pause()
            saver.wait()
          saver.save(step, state, dict(meta, next_step=step, next_batch=number))
        meter.restart()
    with clock.during("save"):
      saved = saver.wait()

  # --- end: the saver has finished ---------------------------------------------------------------
  timing = clock.read(step)
  say(f"{workdir.name}: {metrics.goodput(timing)} of {timing['seconds']:.0f} s")
  if damaged := len(damage.listed(workdir)):
    say(f"{workdir.name}: {damaged} damaged records were passed over: {workdir / damage.FILE}")
  if step < config.steps:
    say(f"{workdir.name}: stopped by a signal at step {step}; run it again to go on")
    return asked.code
  if not saved:
    say(f"{workdir.name}: the last save failed; run it again to go on from the one before")
    return 1
  if first_process:
    write_json(workdir / "done.json", timing)
  say(f"{workdir.name}: done, {timing['seconds']:.0f} s, peak {timing['peak_gb']:.1f} GB")
  return 0


def tokens_of(batch) -> int:
  """Tokens of a packed batch, padding included; 0 of any other."""
  return batch["tokens"].size if "tokens" in batch else 0


def first_batches(config, fields, count: int = 1) -> dict:
  """The first global batches of a run in one, as numpy arrays, the same on every process."""
  import numpy as np

  from tarjax.data.pipeline import make_batches

  with told(), contextlib.closing(make_batches(config, fields=fields)) as batches:
    found = list(itertools.islice(batches, count))
  return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}


def tell(batches):
  """Yields from `batches`, whose mistakes become UserErrors."""
  with told():
    yield from batches


def fingerprint(data) -> str:
  """What the samples depend on, as a short hash."""
  content = {k: v for k, v in plain(data).items() if f"data/{k}" not in FREE}
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:], time.time()))
