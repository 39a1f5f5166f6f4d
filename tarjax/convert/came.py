"""The optimizer CAME of came-pytorch: a torch model's parameters and states."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from tarjax.came import CameState, came
from tarjax.convert.rules import flatten, unflatten


def to_params(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Linear layers' "NAME.weight" [out in] and "NAME.bias" -> {"NAME": {"kernel", "bias"}}."""
  flat = {}
  for name, tensor in tensors.items():
    layer, _, kind = name.rpartition(".")
    matrix = kind == "weight" and tensor.ndim == 2
    flat[f"{layer}/kernel" if matrix else f"{layer}/{kind}"] = tensor.T if matrix else tensor
  return unflatten(flat)


def from_params(tree: Any) -> dict[str, np.ndarray]:
  """The inverse of `to_params`."""
  tensors = {}
  for name, array in flatten(tree).items():
    layer, _, kind = name.rpartition("/")
    matrix = kind == "kernel"
    array = np.asarray(array)
    tensors[f"{layer}.weight" if matrix else f"{layer}.{kind}"] = array.T if matrix else array
  return tensors


def states(state: CameState) -> dict[str, np.ndarray]:
  """The original's names and shapes: rows of a [out in] weight are columns of its kernel."""
  tensors = {f"exp_avg.{k}": v for k, v in from_params(state.mean).items()}
  matrices = {
    "exp_avg_sq_row": state.columns,
    "exp_avg_sq_col": state.rows,
    "exp_avg_res_row": state.doubt_columns,
    "exp_avg_res_col": state.doubt_rows,
  }
  for name, tree in matrices.items():
    for key, array in flatten(tree).items():
      if key.endswith("/kernel"):
        tensors[f"{name}.{key.replace('/kernel', '.weight')}"] = np.asarray(array)[0]
  for key, array in flatten(state.square).items():
    if not key.endswith("/kernel"):
      tensors[f"exp_avg_sq.{key.replace('/', '.')}"] = np.asarray(array)
  return tensors


def run_parity(config: Mapping[str, Any], inputs: Mapping[str, np.ndarray]):
  """Parameters after every step on the recorded gradients, and the last states."""
  given = {
    part: {k.removeprefix(part): v for k, v in inputs.items() if k.startswith(part)}
    for part in ("init.", "grad.")
  }
  (b1, b2, b3), (eps, eps2) = config["betas"], config["eps"]
  clip, decay = config["clip_threshold"], config["weight_decay"]
  optimizer = came(config["lr"], b1, b2, b3, eps, eps2, clip, decay)
  params: Any = to_params(given["init."])
  state: Any
  state, trace = optimizer.init(params), []
  step = jax.jit(optimizer.update)
  for k in range(config["steps"]):
    gradients = to_params({name: g[k] for name, g in given["grad."].items()})
    updates, state = step(gradients, state, params)
    params = optax.apply_updates(params, updates)
    trace.append(from_params(params))
  outputs = {f"param.{name}": np.stack([t[name] for t in trace]) for name in trace[0]}
  return outputs | {f"state.{name}": value for name, value in states(state[0]).items()}
