"""A tokenizer of pictures and its discriminator, trained by one scalar in one step.

In VQGAN's recipe (arXiv 2012.09841 Sec. 3.1, with LlamaGen's numbers) two optimizers take turns on
the same reconstructions: the tokenizer minimises its distances and what the discriminator says of
its pictures, the discriminator a hinge loss on them and on real ones. Neither gradient depends on
the other's update, so both are of one scalar, with gradients stopped where one network's loss meets
the other network. A task keeps the discriminator among its parameters, under the name
"discriminator", whose gradients `optim` clips apart:

  def decode(kernel):  # the decoder, whose last convolution has this kernel
    return model.apply({"params": with_last(params, kernel)}, quant, method="decode")

  def near(pictures):  # the distances that the tokenizer minimises, and metrics
    return losses.mse(pictures, images), {}

  def judge(params, pictures):  # any discriminator: float[b y x 3] -> logits of any shape
    return PatchGan(config).apply({"params": params}, pictures)

  pictures, last = jax.vjp(decode, kernel)
  loss, metrics = adversarial.loss(
    near, judge, params["discriminator"], pictures, images, weight=0.5, last=last)

Without `last`, and then without the vjp too, the weight is not adapted. Before the discriminator
has its say, the loss is near(pictures) alone; its METRICS are zeros then, since one line of a log
may span both: see `tasks.vqvae`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
Near = Callable[[Array], tuple[Array, dict[str, Any]]]
Judge = Callable[[Any, Array], Array]
MOST, LEAST = 1e4, 1e-4  # of the adapted weight; and what is added to the norm it is divided by
METRICS = ("adversarial", "discriminator", "real", "fake", "pull")


def loss(
  near: Near,
  judge: Judge,
  discriminator: Any,
  pictures: Array,
  images: Array,
  *,
  weight: float,
  last: Callable[[Array], Any] | None = None,
) -> tuple[Array, dict[str, Any]]:
  """The losses of both networks, in one scalar.

  Args:
    near: pictures -> (float32[], metrics), what the tokenizer minimises besides.
    judge: (discriminator, pictures) -> logits, above 0 for real ones.
    discriminator: its parameters.
    pictures: float32[b y x 3], reconstructions.
    images: float32[b y x 3], real pictures; no gradient flows into them.
    weight: of the generator's term and of the discriminator's loss.
    last: the pull-back of a vjp, from gradients of the pictures to that of the decoder's last
      kernel: the generator's term is weighed so that it pulls as hard there as `near` does.

  Returns:
    float32[], and near's metrics with "adversarial" (the generator's term), "discriminator" (its
    hinge loss), "real" and "fake" (mean logits) and "pull" (the adapted weight, or 1).
  """
  still = jax.lax.stop_gradient
  fixed = still(discriminator)

  def realism(pictures):
    return -judge(fixed, pictures).mean()

  if last is None:
    distance, metrics = near(pictures)
    unreal, pull = realism(pictures), jnp.float32(1)
    generator = distance + weight * unreal
  else:
    generator, unreal, pull, metrics = balanced(near, realism, pictures, weight, last)
  real, fake = judge(discriminator, still(images)), judge(discriminator, still(pictures))
  hinge = hinge_loss(real, fake)
  said = {"adversarial": unreal, "discriminator": hinge, "real": real.mean(), "fake": fake.mean()}
  return generator + weight * hinge, metrics | said | {"pull": pull}


def hinge_loss(real: Array, fake: Array) -> Array:
  """Half the mean distances of logits float[...] from above 1 and below -1: float32[]."""
  return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())


def balanced(near: Near, realism: Callable[[Array], Array], pictures: Array, weight: float, last):
  """near + weight * pull * realism, with the pull that adapts (arXiv 2012.09841 Eq. 7).

  The two gradients meet at the pictures. Each is computed there, once; the last convolution tells
  how hard it pulls, and their weighted sum goes on through the decoder.

  Returns:
    The sum, realism, pull: float32[] each; and near's metrics.
  """
  still = jax.lax.stop_gradient
  (distance, metrics), down = jax.value_and_grad(near, has_aux=True)(still(pictures))
  unreal, up = jax.value_and_grad(realism)(still(pictures))
  pulls = [optax.tree.norm(last(gradient)) for gradient in (down, up)]
  pull = still(jnp.clip(pulls[0] / (pulls[1] + LEAST), 0, MOST))
  through = (pictures * still(down + weight * pull * up)).sum()
  return distance + weight * pull * unreal + (through - still(through)), unreal, pull, metrics
