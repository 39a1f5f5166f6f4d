"""The table of tasks: one per kind of training stage, all behind the same six methods.

Importing this module imports no network; `make_task` imports the one that it needs.
"""

from collections.abc import Callable
from typing import Any, Protocol

Tree = dict[str, Any]


class Task(Protocol):
  """What the training loop asks of a stage. Trees are nested dicts; images are uint8 outside."""

  def init(self, rng) -> Any:
    """Random parameters, boxed with axis names; traced under eval_shape and jit."""
    ...

  def init_frozen(self, rng) -> Any:
    """Like `init`, for the networks that this stage only reads; {} when there are none."""
    ...

  def start(self, params: Tree, frozen: Tree, load: Callable, workdir, batch: Callable) -> Any:
    """Computed starting points, once, at step 0.

    Args:
      params: in place on the devices of all processes, with `config.init` already filled in.
      frozen: the same, with `config.frozen`.
      load: `load(spec, frozen=False)` -> tree of another run, see `checkpoint.open_tree`.
      workdir: the directory of this run.
      batch: `batch(n)` -> the first n global batches in one, numpy arrays.

    Returns:
      (params, frozen) with the same names and shapes; what is new may be numpy arrays, or arrays
      of another run as `load` gave them.
    """
    ...

  def static(self, step: int) -> dict[str, Any]:
    """Hashable keyword arguments of `loss` for this step: a pure function of (seed, step)."""
    ...

  @property
  def loss(self) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """A method (params, frozen, batch, rng, *, train: bool, **static) -> (float32[], metrics).

    Metrics are scalars; an int array under "codes" is counted as code usage. A loss that is no
    mean over equally many things in every example has under "counts" over how many it is, as
    {"loss": n}, and the same of other metrics. A task with an attribute `couples` that is not ""
    has no such mean, and says there why. One that reads codes or latents says in `fields`, by
    name, which: {name: inputs.Field}.
    """
    ...


# Top-level config keys that one task reads, beyond those that every run has.
TASK_KEYS: dict[str, frozenset[str]] = {
  "siglip2": frozenset({"dense", "naming"}),
  "mllm": frozenset({"words", "widen", "ta_tok", "ta_tok_from", "loss_chunk", "pre_align"})
  | {"representation", "siglip2", "vqvae_from", "unitok_from", "depth_head"},
  "ta_tok": frozenset({"codebook", "beta", "scales"}),
  "vqvae": frozenset({"mix", "lpips", "gan"}),
  "hybrid": frozenset({"weights", "lpips", "gan"}),
  "ar_dtok": frozenset({"ta_tok", "ta_tok_from", "scales", "abs_pe_resize"}),
  "llamagen": frozenset(),
  "dc_ae": frozenset({"unit", "latent_noise"}),
  "dif_dtok": frozenset({"ta_tok", "ta_tok_from", "dc_ae", "dc_ae_from", "dc_ae_size"})
  | {"sana_from", "trained", "shift", "cond_dropout", "scales"},
}


def make_task(config) -> Task:
  """The task that `config.task` names.

  Raises:
    ValueError: an unknown name.
    TypeError: a key in `config.model` that its dataclass does not have.
  """
  match config.task:
    case "siglip2":
      from tarjax.tasks.siglip2 import Task
    case "mllm":
      from tarjax.tasks.mllm import Task
    case "ta_tok":
      from tarjax.tasks.ta_tok import Task
    case "vqvae":
      from tarjax.tasks.vqvae import Task
    case "hybrid":
      from tarjax.tasks.hybrid import Task
    case "ar_dtok":
      from tarjax.tasks.ar_dtok import Task
    case "llamagen":
      from tarjax.tasks.llamagen import Task
    case "dc_ae":
      from tarjax.tasks.dc_ae import Task
    case "dif_dtok":
      from tarjax.tasks.dif_dtok import Task
    case _:
      raise ValueError(f"config.task={config.task!r} is none of {sorted(TASK_KEYS)}")
  return Task(config)
