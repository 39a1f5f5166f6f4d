"""Drawing pictures of the Hybrid representation: every place's sub-codes, then the next place."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tarjax.models import depth_head, qwen2
from tarjax.sampling import Array, draw_settings, draw_subcodes


def generate_subcodes(
  module: qwen2.Qwen2,
  head: depth_head.DepthHead,
  params: Any,
  given: Mapping[str, Array],
  mask: Array,
  seeds: Array,
  *,
  count: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> Array:
  """The sub-codes of the `count` places after each prompt.

  Args:
    module: a Qwen2.
    head: the depth head.
    params: the language model's, with the head's in "depth_head".
    given: "ids" int32[b l], padded on the left, and maybe "embeds" float[b l d] in their place.
    mask: bool[b l], what is a prompt's.
    seeds: uint32[b].
    count: static.
    temperature, top_k, top_p: of every sub-code, as in `sampling.sample`.

  Returns:
    int32[b count m].

  Raises:
    ValueError: a setting out of range.
  """
  draw = draw_settings(temperature, top_k, top_p)
  embeds = given.get("embeds")
  return _places(module, head, params, given["ids"], embeds, mask, seeds, draw, count)


@functools.partial(jax.jit, static_argnums=(0, 1, 8))
def _places(module, head, params, ids, embeds, mask, seeds, draw, count):
  b, l = mask.shape
  s, lengths, own = l + count - 1, mask.sum(1), params["depth_head"]
  words = jnp.concatenate([mask, jnp.ones((b, count - 1), bool)], 1)  # [b s]

  def run(embeds, positions, cache, index):
    past = jnp.arange(s) <= index + jnp.arange(positions.shape[1])[:, None]  # [l s]
    where: Any = {"positions": positions, "mask": words[:, None] & past, "cache": cache}
    hidden, cache = module.apply({"params": params}, embeds=embeds, **where, index=index)
    return hidden[:, -1], cache  # [b d]

  def step(carry, t):  # t places have been drawn, the last of which is fed now
    codes, cache = carry
    fed = head.apply({"params": own}, codes[:, None], method="embed")  # [b 1 d]
    hidden, cache = run(fed, (lengths + t - 1)[:, None], cache, l + t - 1)
    codes, _ = draw_subcodes(head, own, hidden, seeds, t, **draw)
    return (codes, cache), codes

  if embeds is None:
    embeds = module.apply({"params": params}, ids, method="embed")
  positions = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
  hidden, cache = run(embeds, positions, qwen2.empty_cache(module.config, b, s), 0)
  first, _ = draw_subcodes(head, own, hidden, seeds, 0, **draw)
  _, rest = jax.lax.scan(step, (first, cache), jnp.arange(1, count))
  return jnp.concatenate([first[None], rest]).swapaxes(0, 1)  # [b count m]
