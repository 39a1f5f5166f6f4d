"""Evaluators inside training: every eval_every steps, on the parameters of that step.

  config.evals = {"pope": {"bundle": "..", "data": "../data", "limit": 500}, "digits": {...}}

Names and paths are those of the workdir. All components but the one in training are of `bundle`, a
folder with bundle.json; between evaluations they lie in the memory of the host. The parameters are
the averaged ones where `optim.ema` keeps them. Values are logged as eval/NAME/METRIC.

  task      evaluators, with arguments beside `batch`
  mllm      digits: bundle, count, seed, scale, temperature, parts
            pope, mme, mmbench, seed, gqa, mmmu: bundle, data, limit, scale
            geneval, dpg: bundle, data, limit, scale; pictures go to WORKDIR/evals/STEP.geneval, and
              logged is how sure the model itself is that they match their prompts
  ta_tok    reconstruction: source, count, scales, resize
  vqvae     reconstruction: source, count, resize
  ar_dtok   reconstruction: bundle, source, count, scales, resize, seed
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tarjax import optim
from tarjax.bundle import PARTS, pool_scale
from tarjax.config import UserError, told
from tarjax.evals.benchmarks import BENCHMARKS
from tarjax.sharding import batch_parts

Run = Callable[[Any, int], Iterator[tuple[str, float]]]  # (pipeline, step) -> (name, value)s
PICTURES = ("geneval", "dpg")
NEEDED = {  # what comes out of a bundle, by task and evaluator
  "mllm": {
    **dict.fromkeys(BENCHMARKS, ("tokenizer", "ta_tok")),
    **dict.fromkeys(("digits", *PICTURES), ("tokenizer", "ta_tok", "ar_dtok", "vqvae")),
  },
  "ta_tok": {"reconstruction": ()},
  "vqvae": {"reconstruction": ()},
  "ar_dtok": {"reconstruction": ("ta_tok", "vqvae")},
}


class Evaluators:
  """All of config.evals; `run(state, frozen)` yields ("eval/pope/f1", value), and so on.

  Args:
    config: of the run, with its workdir.
    mesh: of the run. On several processes all make the same calls.

  Raises:
    UserError: an evaluator that the task does not have, or one with wrong arguments.
  """

  def __init__(self, config, mesh):
    self.config, self.mesh = config, mesh
    self.pipes: dict[tuple, Any] = {}
    self.runs: list[tuple[Any, Run]] = []
    evals = config.evals.to_dict()
    if evals and not config.eval_every:
      raise UserError("config.evals is never run: set config.eval_every to a number of steps")
    for name, given in evals.items():
      needed = needed_of(config)
      if name not in needed:
        there = f"those of {config.task} are {', '.join(needed) or 'none'}"
        raise UserError(f"config.evals has no evaluator {name!r}: {there}")
      try:
        with told():
          self.runs.append(self._made(name, needed[name], **given))
      except (TypeError, UserError) as e:
        raise UserError(f"config.evals.{name}: {e}") from e

  def _made(self, name: str, needed: tuple, *, bundle: str = "", batch: int = 64, **given):
    """(pipeline, run) of one evaluator."""
    if bool(bundle) != bool(needed):
      raise UserError("give `bundle`" if needed else "nothing reads `bundle`")
    parts = batch_parts(self.mesh)
    batch = -(-batch // parts) * parts  # a row for each of the devices, or as many for each
    make = digits if name == "digits" else reconstruction
    if name in BENCHMARKS or name in PICTURES:
      make = functools.partial(asking if name in BENCHMARKS else drawing, name)
    run = make(self.config, batch, **given)
    key = (bundle, batch, needed)
    if key not in self.pipes:
      self.pipes[key] = self._pipe(*key)
    return self.pipes[key], run

  def _pipe(self, bundle: str, batch: int, needed: tuple):
    from tarjax import bundle as bundles
    from tarjax.devices import Devices
    from tarjax.pipeline import TarPipeline

    config, folder = self.config, Path(self.config.workdir)
    made = bundles.of_run(config)
    if bundle:
      folder = (folder / bundle).resolve()
      made = bundles.read(folder, needed)
      made["components"] = {name: made["components"][name] for name in needed}
    return TarPipeline(folder, made, batch, Devices(self.mesh), {config.task: config})

  def run(self, state, frozen) -> Iterator[tuple[str, float]]:
    params, step = optim.averaged(state.opt, state.params), int(state.step)
    for pipe in self.pipes.values():
      own = frozen if self.config.task in ("ta_tok", "mllm") else None
      pipe.settle({self.config.task: params}, own)
      for other, run in self.runs:
        if other is pipe:
          for name, value in run(pipe, step):
            yield f"eval/{name}", value
      pipe.release()


def needed_of(config) -> dict[str, tuple[str, ...]]:
  """{evaluator: components out of a bundle} of the config's task."""
  needed, name = NEEDED.get(config.task, {}), config.get("representation", "ta_tok")
  if config.task != "mllm" or name == "ta_tok":
    return needed
  return dict.fromkeys(needed, ("tokenizer", *PARTS[name]))


def digits(config, batch: int, parts=("t2i", "i2t"), **given) -> Run:
  from tarjax.evals import digits
  from tarjax.evals.digits_scorer import Scorer

  if config.get("representation", "ta_tok") != "ta_tok":
    given.setdefault("scale", None)
  evaluator = digits.Evaluator(None, parts=parts, **given)

  def run(pipe, step):
    evaluator.scorer = evaluator.scorer or Scorer()
    for name, value in evaluator.run(pipe):
      yield f"digits/{name}", value

  return run


def asking(name: str, config, batch: int, data: str, limit: int = 0, scale=None) -> Run:
  from tarjax.data.sources import resolve
  from tarjax.evals import asking
  from tarjax.evals.tables import Table

  table = Table(BENCHMARKS[name], Path(resolve(config.workdir, data)), limit)
  evaluator = asking.Evaluator(table, batch=batch)

  def run(pipe, step):
    how: Any = {"scale": pool_scale(pipe.bundle, scale, 1), "temperature": 0.0}
    yield from evaluator.run(functools.partial(pipe.describe, **how))

  return run


def drawing(name: str, config, batch: int, data: str, limit: int = 0, scale=None) -> Run:
  from tarjax import self_reflect
  from tarjax.data.sources import resolve
  from tarjax.evals import asking, drawing

  home, data_home = Path(config.workdir) / "evals", Path(resolve(config.workdir, data))
  list_jobs = functools.partial(drawing.JOBS[name], data_home)
  size = max(batch // drawing.EACH, 1)
  list_jobs(home)  # wrong data are told before the first step

  def run(pipe, step):
    folder, sure = home / f"{step:07d}.{name}", []
    jobs = list_jobs(folder)[: limit or None]
    how: Any = {"scale": pool_scale(pipe.bundle, scale, 1)}
    by_ids = pipe.representation.understanding == "ids"
    for start in range(0, len(jobs), size):
      part = jobs[start : start + size]
      numbered = [(job.prompt, k) for job in part for k in range(drawing.EACH)]
      asked, seeds = [prompt for prompt, _ in numbered], [asking.seed_of(*n) for n in numbered]
      drawn = pipe.generate(asked, seeds=seeds, **how)
      shown = [d.codes if by_ids else d.image for d in drawn]
      sure += list(self_reflect.judge(pipe, shown, asked, **how))
      if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for i, job in enumerate(part):
          own = drawn[i * drawing.EACH : (i + 1) * drawing.EACH]
          job.write(np.stack([d.image for d in own]))
    yield f"{name}/p_yes", float(np.mean(sure))
    yield f"{name}/pictures", float(len(sure))

  return run


def reconstruction(config, batch: int, source: dict, **given) -> Run:
  from tarjax.data.sources import make_source
  from tarjax.evals import reconstruction

  records = make_source(source, workdir=config.workdir, split="test", seed=config.seed)
  evaluator = reconstruction.Evaluator(records, batch=batch, **given)

  def run(pipe, step):
    for name, value in evaluator.run(pipe):
      yield f"reconstruction/{name}", value

  return run
