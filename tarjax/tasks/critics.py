"""What a tokenizer's pictures are judged by besides squared errors: LPIPS and a discriminator.

`config.lpips` adds a perceptual distance: its `weight`, and what its network has other than the
published one's, which comes from `config.frozen`. `config.gan` adds a discriminator: `weight`,
`start` (the update from which on it has its say, counted from 1), `adaptive`, and what a
PatchGanConfig has. A task that has these hands its parts of `init`, `init_frozen` and `static`
over to here, and calls `compare`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tarjax import adversarial
from tarjax.models.lpips import Lpips, LpipsConfig
from tarjax.models.patchgan import PatchGan, PatchGanConfig

Array = jax.Array


class Critics:
  """Both, either or none of them, by the task's config; `couples` is that of a task."""

  def __init__(self, config, dtype: str):
    own: dict[str, Any] = {"dtype": dtype}
    lpips, gan = own | dict(config.get("lpips", {})), own | dict(config.get("gan", {}))
    self.lpips_weight = lpips.pop("weight", 0.0)
    self.lpips: Any = Lpips(LpipsConfig(**lpips))
    self.gan_weight, self.gan_start = gan.pop("weight", 0.0), gan.pop("start", 0)
    self.adaptive = gan.pop("adaptive", False)
    self.gan: Any = PatchGan(PatchGanConfig(**gan))
    self.couples = "config.gan's batch norms are over the batch" if self.gan_weight else ""

  def init(self, rng) -> dict[str, Any]:
    """The discriminator's parameters, under its name, or {}."""
    if not self.gan_weight:
      return {}
    side = 3 * 2**self.gan.config.layers
    judge = self.gan.init(jax.random.fold_in(rng, 1), jnp.zeros((1, side, side, 3)))
    return {"discriminator": judge["params"]}

  def init_frozen(self, rng) -> dict[str, Any]:
    if not self.lpips_weight:
      return {}
    image = jnp.zeros((1, 16, 16, 3))
    return {"lpips": self.lpips.init(rng, image, image)["params"]}

  def static(self, step: int) -> dict[str, bool]:
    return {"judged": True} if self.gan_weight and step + 1 >= self.gan_start else {}

  def perceptual(self, frozen, pictures: Array, images: Array) -> tuple[Any, dict[str, Array]]:
    """LPIPS of float[b y x 3] times its weight, and as a metric; without one, 0 and none."""
    if not self.lpips_weight:
      return 0.0, {}
    lpips = self.lpips.apply({"params": frozen["lpips"]}, pictures, images).mean()
    return self.lpips_weight * lpips, {"lpips": lpips}

  def compare(
    self,
    params,
    images: Array,
    draw: Callable[[Any], Array],
    near: Callable[[Array], tuple[Array, dict[str, Any]]],
    *,
    last: str,
    judged: bool,
  ) -> tuple[Array, dict[str, Any]]:
    """What the pictures cost that the task's decoder draws.

    Args:
      params: the task's, with "decoder" and, where there is one, "discriminator".
      images: float[b y x 3], the real pictures.
      draw: parameters -> pictures float32[b y x 3].
      near: pictures -> (float32[], metrics), the distances.
      last: name of the decoder's last layer, at whose kernel an adaptive weight is measured.
      judged: adds the losses of decoder and discriminator.

    Returns:
      float32[] and metrics, the same ones judged or not.
    """
    decoder, pull = params["decoder"], None

    def judge(discriminator, pictures):
      return self.gan.apply({"params": discriminator}, pictures)

    def with_last(kernel):
      edge = dict(decoder[last], kernel=kernel)
      return draw(dict(params, decoder=dict(decoder, **{last: edge})))

    if judged and self.adaptive:
      pictures, pull = jax.vjp(with_last, decoder[last]["kernel"])
    else:
      pictures = draw(params)
    if judged:
      make: Any = {"weight": self.gan_weight, "last": pull}
      return adversarial.loss(near, judge, params["discriminator"], pictures, images, **make)
    loss, metrics = near(pictures)
    silent = adversarial.METRICS if self.gan_weight else ()
    return loss, metrics | dict.fromkeys(silent, jnp.float32(0))
