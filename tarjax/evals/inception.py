"""Inception-v3 of 2015, whose features FID and its kin compare (arXiv 1512.00567, 1706.08500).

The network is that of TensorFlow's classify_image graph: average pools do not count the padding,
and the last block's pool is a maximum. Batch norms are folded into the convolutions.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tarjax.models.layers import Array, Conv, Linear

SIDE = 299
SPATIAL = 7  # channels of the 17x17 map that sFID looks at
CLASSES = 1008


class Step(NamedTuple):
  """A convolution with ReLU; `name` is PyTorch's, within its block."""

  name: str
  features: int
  size: tuple[int, int]
  stride: int = 1
  padding: str = "SAME"


class Block(NamedTuple):
  """Branches side by side, then a pool: "avg", "max" with a convolution, "half" without.

  A branch is a chain of steps; a pair in the place of a step is two convolutions of one input.
  """

  branches: tuple[tuple[Step | tuple[Step, Step], ...], ...]
  pool: str
  pooled: int = 0


def chain(name: str, *steps: tuple) -> tuple[Step, ...]:
  """name_1, name_2, ... of (features, ky, kx) each; (features, ky, kx, 2) halves the sides."""
  made = []
  for i, (features, ky, kx, *rest) in enumerate(steps):
    label = f"{name}_{i + 1}" if len(steps) > 1 else name
    step = Step(label, features, (ky, kx))
    made.append(step._replace(stride=2, padding="VALID") if rest else step)
  return tuple(made)


def block_a(pooled: int) -> Block:
  double = chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3))
  five = chain("branch5x5", (48, 1, 1), (64, 5, 5))
  return Block((chain("branch1x1", (64, 1, 1)), five, double), "avg", pooled)


def block_c(width: int) -> Block:
  w = width
  seven = chain("branch7x7", (w, 1, 1), (w, 1, 7), (192, 7, 1))
  double = chain("branch7x7dbl", (w, 1, 1), (w, 7, 1), (w, 1, 7), (w, 7, 1), (192, 1, 7))
  return Block((chain("branch1x1", (192, 1, 1)), seven, double), "avg", 192)


def block_e(pool: str) -> Block:
  def pair(name: str) -> tuple[Step, Step]:
    return Step(f"{name}a", 384, (1, 3)), Step(f"{name}b", 384, (3, 1))

  three = (Step("branch3x3_1", 384, (1, 1)), pair("branch3x3_2"))
  first, second = Step("branch3x3dbl_1", 448, (1, 1)), Step("branch3x3dbl_2", 384, (3, 3))
  double = (first, second, pair("branch3x3dbl_3"))
  return Block((chain("branch1x1", (320, 1, 1)), three, double), pool, 192)


STEM = (
  Step("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
  Step("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
  Step("Conv2d_2b_3x3", 64, (3, 3)),
  Step("Conv2d_3b_1x1", 80, (1, 1), 1, "VALID"),
  Step("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
)
POOLED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")  # steps of the stem after which sides are halved
BLOCKS = {
  "Mixed_5b": block_a(32),
  "Mixed_5c": block_a(64),
  "Mixed_5d": block_a(64),
  "Mixed_6a": Block(
    (
      chain("branch3x3", (384, 3, 3, 2)),
      chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3, 2)),
    ),
    "half",
  ),
  "Mixed_6b": block_c(128),
  "Mixed_6c": block_c(160),
  "Mixed_6d": block_c(160),
  "Mixed_6e": block_c(192),
  "Mixed_7a": Block(
    (
      chain("branch3x3", (192, 1, 1), (320, 3, 3, 2)),
      chain("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2)),
    ),
    "half",
  ),
  "Mixed_7b": block_e("avg"),
  "Mixed_7c": block_e("max"),
}


class Inception(nn.Module):
  """float32[b 299 299 3] in [-1, 1] -> {"pool": [b 2048], "spatial": [b 2023], "logits": [b 1008]}.

  "logits" lack their bias, as the Inception score of the original does.
  """

  @nn.compact
  def __call__(self, x: Array) -> dict[str, Array]:
    for step in STEM:
      x = conv(step, step.name, x)
      if step.name in POOLED:
        x = nn.max_pool(x, (3, 3), (2, 2))
    spatial = x
    for name, block in BLOCKS.items():
      parts = list(self._branches(name, block, x))
      if name == "Mixed_6d":
        spatial = parts[0][..., :SPATIAL]  # [b 17 17 7]
      x = jnp.concatenate(parts, -1)
    pool = x.mean((1, 2))  # [b 2048]
    matmul = Linear("bd,dv->bv", (2048, CLASSES), (None, None), dtype=jnp.float32, name="fc")
    return {
      "pool": pool,
      "spatial": spatial.reshape(len(x), -1),
      "logits": matmul(pool),
    }

  def _branches(self, name: str, block: Block, x: Array) -> Iterator[Array]:
    for branch in block.branches:
      y = x
      for step in branch:
        pair = (step,) if isinstance(step, Step) else step
        y = jnp.concatenate([conv(s, f"{name}.{s.name}", y) for s in pair], -1)
      yield y
    if block.pool == "half":
      yield nn.max_pool(x, (3, 3), (2, 2))
      return
    if block.pool == "max":
      y = nn.max_pool(x, (3, 3), (1, 1), "SAME")
    else:
      y = nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
    yield conv(Step("branch_pool", block.pooled, (1, 1)), f"{name}.branch_pool", y)


def conv(step: Any, name: str, x: Array) -> Array:
  return nn.relu(Conv(step.features, step.size, step.stride, step.padding, name=name)(x))


def steps() -> list[str]:
  """Names of all convolutions."""
  names = [step.name for step in STEM]
  for name, block in BLOCKS.items():
    for step in (s for branch in block.branches for s in branch):
      pair = (step,) if isinstance(step, Step) else step
      names += [f"{name}.{s.name}" for s in pair]
    names += [f"{name}.branch_pool"] * (block.pool != "half")
  return names


@jax.jit
def features(params, x: Array) -> dict[str, Array]:
  """`Inception` in full float32, compiled once for all that call it."""
  net: Any = Inception()
  with jax.default_matmul_precision("highest"):
    return net.apply({"params": params}, x)


@functools.partial(jax.jit, static_argnames="like")
def resized(images: Array, like: str) -> Array:
  """uint8[b y x 3] -> float32[b 299 299 3] in [-1, 1].

  Bilinear without antialiasing; "tensorflow" puts pixel i at i * old / new, as TensorFlow 1 did,
  and "pytorch" aligns the pixels' centres.
  """
  x = images.astype(jnp.float32)
  for axis in (1, 2):
    old = x.shape[axis]
    at = np.arange(SIDE) * np.float32(old / SIDE)
    if like == "pytorch":
      centres = np.arange(SIDE, dtype=np.float32) + np.float32(0.5)
      at = np.maximum(centres * np.float32(old / SIDE) - np.float32(0.5), 0)
    low = np.minimum(np.floor(at).astype(int), old - 1)
    share = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(4)])
    below, above = (jnp.take(x, i, axis) for i in (low, np.minimum(low + 1, old - 1)))
    x = below + (above - below) * share
  return x / 127.5 - 1 if like == "pytorch" else (x - 128) / 128
