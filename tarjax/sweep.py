"""Tries meshes, then remat policies, then batch sizes around a config, and keeps what is best.

One thing is changed at a time, the best of it is kept, and the next is tried on top: a compile
takes minutes, and all combinations would take a day.
"""

import json
from collections.abc import Callable
from typing import Any

from tarjax.config import UserError

REMATS = ("full", "attn", "attn,qkv", "attn,qkv,resid", "attn,qkv,resid,gate,up", "none")
HEAD = (
  f"{'mesh':<28} {'remat':<24} {'batch':>6} {'MFU':>6} {'samples/s':>10} {'GiB':>7} {'step s':>8}"
)


def sweep(config: Any, attempt: Callable[[Any], dict[str, Any]], as_json: bool) -> int:
  """Prints every attempt and the best one; returns the verb's exit code.

  Args:
    config: where to start from.
    attempt: a config -> what `plan.plan` returns.
    as_json: print one object at the end in the place of lines.
  """
  tried: list[dict[str, Any]] = []

  def run(change: dict[str, Any]) -> dict[str, Any]:
    trial = changed(config, change)
    try:
      result = attempt(trial)
    except UserError as e:  # a mesh that does not divide something
      result = {"fits": False, "reason": str(e)}
    remat = trial.model.get("remat", "none")
    tried.append(dict(change=change, batch=trial.batch, remat=remat, result=result))
    if not as_json:
      print(row(tried[-1]), flush=True)
    return tried[-1]

  if not as_json:
    print(HEAD)
  best = run({})
  for options in (meshes(config), remats(config), batches(config)):
    trials = [run(best["change"] | option) for option in options]
    best = max([best, *trials], key=samples_per_second)
  fits = best["result"]["fits"]
  if as_json:
    print(json.dumps({"best": best if fits else None, "tried": tried}, indent=2))
  elif fits:
    flags = " ".join(f"--config.{key}={value}" for key, value in best["change"].items())
    print(f"best: {flags or 'the config as it is'}\n{row(best)}")
  else:
    print("nothing that was tried fits")
  return 0 if fits else 1


def changed(config: Any, change: dict[str, Any]) -> Any:
  """A copy of the config with dotted keys set."""
  trial = config.copy_and_resolve_references()
  trial.update_from_flattened_dict(change)
  return trial


def meshes(config: Any) -> list[dict[str, Any]]:
  """Other sizes of fsdp, the rest of the chips along data."""
  sizes = [n for n in (1, 4, 8, 16, 32, 64) if n != config.mesh.fsdp]
  return [{"mesh.data": -1, "mesh.fsdp": n} for n in sizes]


def remats(config: Any) -> list[dict[str, Any]]:
  """Other policies, for networks that have any."""
  mine = config.model.get("remat")
  return [{"model.remat": name} for name in REMATS if mine and name != mine]


def batches(config: Any) -> list[dict[str, Any]]:
  """Half and twice the batch."""
  return [{"batch": n} for n in (config.batch // 2, config.batch * 2) if n]


def samples_per_second(trial: dict[str, Any]) -> float:
  """0 where it does not fit."""
  result = trial["result"]
  return trial["batch"] / result["step_seconds"] if result["fits"] else 0.0


def row(trial: dict[str, Any]) -> str:
  """One line under HEAD."""
  result = trial["result"]
  sizes = result.get("mesh", {})
  mesh = " ".join(f"{k}={v}" for k, v in sizes.items()) or str(trial["change"])
  start = f"{mesh:<28} {trial['remat']:<24} {trial['batch']:>6}"
  if not result["fits"]:
    return f"{start} does not fit: {result['reason'].splitlines()[0][:120]}"
  used = result["bytes_per_chip"]["total"] / 2**30
  rate = samples_per_second(trial)
  return f"{start} {result['mfu']:>6.1%} {rate:>10,.1f} {used:>7.2f} {result['step_seconds']:>8.4f}"
