"""Dif-DTok as a part of a bundle: TA-Tok's features in, pictures out (paper Sec. 3.2)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarjax import checkpoint, diffusion
from tarjax.models.dc_ae import DcAe, DcAeConfig
from tarjax.models.dif_dtok import DifDtok, DifDtokConfig
from tarjax.models.vqvae import to_uint8
from tarjax.tasks.dif_dtok import join

PLANS = {"dpm": diffusion.dpm_plan, "euler": diffusion.euler_plan}


class DifDetokenizer:
  """SANA and DC-AE of two finished runs.

  Args:
    run: the Dif-DTok run's directory.
    dc_ae_run: the DC-AE run's directory.

  Raises:
    ValueError: networks that do not fit each other.
  """

  def __init__(self, run: Path, dc_ae_run: Path):
    config = checkpoint.read_config(run)
    self.model: Any = DifDtok(DifDtokConfig(**config.model))
    self.dc_ae: Any = DcAe(DcAeConfig(**checkpoint.read_config(dc_ae_run).model))
    channels, latent = self.model.config.channels, self.dc_ae.config.latent
    if channels != latent:
      raise ValueError(f"Dif-DTok draws {channels} channels, the DC-AE has {latent}")
    self.side, self.shift = config.dc_ae_size, config.shift
    self.sampler = config.get("sampler", "dpm")  # an import has that of its scheduler
    self.guided = (run / "frozen").is_dir()  # an import of SANA alone has no null condition
    rest = checkpoint.load(f"{run}:sana", frozen=True) if config.trained != "all" else {}
    trees = {
      "sana": join(checkpoint.load(str(run)), rest),
      "dc_ae": checkpoint.load(str(dc_ae_run)),
      "null": checkpoint.load(f"{run}:null", frozen=True) if self.guided else None,
    }
    self.trees = jax.device_put(trees)
    self._draw = jax.jit(self._pictures, static_argnums=(4,))
    self._rebuild = jax.jit(
      lambda params, x: self.dc_ae.apply({"params": params}, x.astype(jnp.float32) / 127.5 - 1)
    )

  def draw(
    self,
    cond: jax.Array,
    seeds: Sequence[int] | np.ndarray | jax.Array,
    *,
    sampler: str | None = None,
    steps: int = 20,
    guidance_scale: float = 1.0,
  ) -> np.ndarray:
    """TA-Tok's features float32[b n w] -> pictures uint8[b y x 3]; a seed is a picture's noise.

    Raises:
      ValueError: an unknown sampler, or guidance without a null condition.
    """
    sampler = sampler or self.sampler
    if sampler not in PLANS:
      raise ValueError(f"sampler {sampler!r} is none of {list(PLANS)}")
    if guidance_scale > 1 and not self.guided:
      raise ValueError(f"guidance_scale={guidance_scale} needs a null condition; the run has none")
    plan = PLANS[sampler](steps, self.shift)
    keys = jnp.asarray(np.asarray(seeds, np.uint32))
    drawn = self._draw(self.trees, plan, cond, keys, float(guidance_scale))
    return to_uint8(drawn, "round")

  def _pictures(self, trees, plan, cond, seeds, scale: float):
    grid = self.side // self.dc_ae.config.factor
    shape = (grid, grid, self.model.config.channels)
    noise = jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(seeds)
    null = trees["null"]
    if null is not None:
      null = null[: cond.shape[1]].astype(cond.dtype)
      null = jnp.broadcast_to(null, (len(cond), *null.shape))

    def velocity(x, time, cond, mask):
      time = time * self.model.config.time_scale
      return self.model.apply({"params": trees["sana"]}, x, time, cond, mask)

    latents, _ = diffusion.sample(velocity, noise, plan, cond, null, scale)
    latents /= self.dc_ae.config.scaling
    return self.dc_ae.apply({"params": trees["dc_ae"]}, latents, method="decode")

  def rebuild(self, images: np.ndarray) -> np.ndarray:
    """Pictures uint8[b y x 3] of the DC-AE's size -> through it alone, the same."""
    return to_uint8(self._rebuild(self.trees["dc_ae"], images), "round")
