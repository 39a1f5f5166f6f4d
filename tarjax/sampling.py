"""Sampling: guidance, filters, and the two decoding loops, each one compiled step with a KV cache.

Numbers (temperature, top_k, top_p, guidance, seeds) are traced: changing them does not recompile.
What they switch on or off is static: greedy or sampled, with or without top-k, top-p, guidance.
Every row draws from its own seed, so its sample does not depend on the batch it is in.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarjax.models import ar_dtok, depth_head, qwen2
from tarjax.sharding import batch_parts

Array = jax.Array | np.ndarray
REMOVED = -1e30  # finite, so that differences and products of removed logits are not NaN


def filter_logits(logits: Array, temperature=1.0, top_k=0, top_p=1.0) -> Array:
  """Divides by the temperature, then removes what top-k and then top-p leave out.

  Logits that tie with the k-th stay. Top-p keeps the likeliest words up to and with the one that
  crosses the threshold; among exactly tied words the lower id comes first.

  Args:
    logits: float32[... v].
    temperature: at least 1e-5 is used.
    top_k: a number or int32[]; 0 is off. None skips the work at compile time.
    top_p: a number or float32[]; 1 is off. None skips the work at compile time.

  Returns:
    float32[... v], removed entries at -inf.
  """
  logits = logits.astype(jnp.float32) / jnp.maximum(temperature, 1e-5)
  no_k = top_k is None or (isinstance(top_k, int) and top_k <= 0)
  no_p = top_p is None or (isinstance(top_p, int | float) and top_p >= 1)
  if no_k and no_p:
    return logits
  v = logits.shape[-1]
  order = jnp.argsort(-logits, -1, stable=True)
  ranked = jnp.take_along_axis(logits, order, -1)  # descending
  if not no_k:
    k = jnp.asarray(top_k)
    k = jnp.where(k > 0, jnp.minimum(k, v), v)
    least = jnp.take(ranked, k - 1, axis=-1)[..., None]
    logits = jnp.where(logits < least, -jnp.inf, logits)
    ranked = jnp.where(ranked < least, -jnp.inf, ranked)
  if not no_p:
    total = jnp.cumsum(jax.nn.softmax(ranked, -1), -1)
    over = jnp.pad(total > top_p, [(0, 0)] * (logits.ndim - 1) + [(1, 0)])[..., :-1]
    over &= jnp.asarray(top_p) < 1
    removed = jnp.put_along_axis(jnp.zeros_like(over), order, over, -1, inplace=False)
    logits = jnp.where(removed, -jnp.inf, logits)
  return logits


def row_keys(seeds: Array, step: Array | int) -> Array:
  """One key per row of uint32[b], for the step-th draw."""
  return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), step))(seeds)


def sample(keys: Array, logits: Array, temperature=1.0, top_k=0, top_p=1.0) -> Array:
  """Draws one word per row; temperature None is greedy.

  Args:
    keys: key[b], one per row; unused when greedy.
    logits: float32[b v].
    temperature, top_k, top_p: as in `filter_logits`; a temperature of the number 0 is greedy too.

  Returns:
    int32[b].
  """
  if temperature is None or (isinstance(temperature, int | float) and temperature == 0):
    return jnp.argmax(logits, -1).astype(jnp.int32)
  logits = filter_logits(logits, temperature, top_k, top_p)
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def guide(cond: Array, uncond: Array, scale) -> Array:
  """Classifier-free guidance on logits: uncond + scale (cond - uncond), float32[b v]."""
  return uncond + scale * (cond - uncond)


def draw_settings(temperature: float, top_k: int, top_p: float) -> dict[str, Any]:
  """What is on as arrays, what is off as None: the structure decides what is compiled.

  Raises:
    ValueError: a value out of range.
  """
  if not 0 <= temperature < np.inf or top_k < 0 or not 0 < top_p <= 1:
    raise ValueError(
      f"temperature={temperature}, top_k={top_k}, top_p={top_p}: need >= 0, >= 0, in (0, 1]"
    )
  if temperature == 0:
    return {"temperature": None, "top_k": None, "top_p": None}
  return {
    "temperature": np.float32(temperature),
    "top_k": np.int32(top_k) if top_k else None,
    "top_p": np.float32(top_p) if top_p < 1 else None,
  }


def generate_codes(
  module: ar_dtok.ArDtok,
  params: Any,
  cond: Array,
  seeds: Array,
  *,
  guidance_scale: float = 1.0,
  guidance_interval: int = -1,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  return_logits: bool = False,
) -> Any:
  """Draws the T codes of each image (paper Sec. 3.2).

  Guidance is on when its scale is above 1: the batch is doubled, and the prefix of the
  unconditional half, which is the same for every row, is computed once. With an interval n >= 0
  it stops after code n + 1; -1 never stops.

  Args:
    module: an ArDtok.
    params: its parameters.
    cond: float[b k c], int32[b k] or int32[b], by the module's kind of condition.
    seeds: uint32[b].
    return_logits: also return the (guided) logits of every draw, float32[b T v].

  Returns:
    int32[b T], or with logits a pair.
  """
  settings = draw_settings(temperature, top_k, top_p)
  scale = np.float32(guidance_scale) if guidance_scale > 1 else None
  return _codes(
    module, params, cond, seeds, scale, np.int32(guidance_interval), settings, return_logits
  )


@functools.partial(jax.jit, static_argnums=(0, 7))
def _codes(module, params, cond, seeds, scale, interval, settings, return_logits):
  c = module.config
  b, k = cond.shape[0], 1 if c.cond == "class" else cond.shape[1]

  def prefill(cond):
    cache = ar_dtok.empty_cache(c, cond.shape[0], k + c.length - 1)
    return module.apply({"params": params}, cond, cache, method="prefill")

  logits, cache = prefill(cond)
  if scale is not None:
    rows = batch_parts()  # one on each device of the mesh, if one is set
    null = prefill(ar_dtok.null_condition(c, cond[:rows]))
    logits, cache = jax.tree.map(
      lambda x, y, axis: jnp.concatenate([x, jnp.repeat(y, b // rows, axis)], axis),
      (logits, cache),
      null,
      (0, {"k": 1, "v": 1}),
    )

  def draw(logits, t):  # t counts codes
    if scale is not None:
      on = (interval < 0) | (t - 1 <= interval)
      logits = jnp.where(on, guide(logits[:b], logits[b:], scale), logits[:b])
    return sample(row_keys(seeds, t), logits, **settings), logits

  def step(carry, t):
    tokens, cache = carry
    fed = tokens if scale is None else jnp.tile(tokens, 2)
    logits, cache = module.apply({"params": params}, fed, cache, k + t - 1, method="step")
    tokens, logits = draw(logits, t)
    return (tokens, cache), (tokens, logits if return_logits else None)

  first, logits = draw(logits, 0)
  _, (rest, more) = jax.lax.scan(step, (first, cache), jnp.arange(1, c.length))
  tokens = jnp.concatenate([first[None], rest]).T  # [b T]
  if not return_logits:
    return tokens
  return tokens, jnp.concatenate([logits[None], jnp.asarray(more)]).swapaxes(0, 1)  # [b T v]


def draw_subcodes(
  module: depth_head.DepthHead,
  params: Any,
  hidden: Array,
  seeds: Array,
  position: Array | int,
  *,
  temperature: Any = 1.0,
  top_k: Any = 0,
  top_p: Any = 1.0,
) -> tuple[Array, Array]:
  """Draws the sub-codes of one place of every row; also inside a compiled loop over places.

  Args:
    module: a DepthHead.
    params: its parameters.
    hidden: float[b d], what the language model says.
    seeds: uint32[b].
    position: int32[], the place's number among the draws of these seeds.
    temperature, top_k, top_p: as in `sample`.

  Returns:
    int32[b m], and the logits they were drawn from, before the filters, float32[b m e].
  """

  def step(carry, k):
    last, cache = carry
    logits, cache = module.apply({"params": params}, hidden, last, cache, k, method="step")
    keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys(seeds, position), k)
    code = sample(keys, logits, temperature, top_k, top_p)
    return (code, cache), (code, logits)

  b, c = len(hidden), module.config
  start = (jnp.zeros(b, jnp.int32), depth_head.empty_cache(c, b))
  _, (codes, logits) = jax.lax.scan(step, start, jnp.arange(c.codebooks))
  return codes.T, logits.swapaxes(0, 1)  # [b m], [b m e]


Allowed = tuple[int, int] | Array | Callable[[int], tuple[int, int]]


def allowed_ranges(allowed: Allowed, max_new: int) -> np.ndarray:
  """Any form of `allowed` -> int32[max_new 2] or int32[b max_new 2]: first and last id per draw.

  Raises:
    ValueError: an array of another shape.
  """
  if callable(allowed):
    allowed = np.array([allowed(t) for t in range(max_new)])
  ranges = np.asarray(allowed, np.int32)
  if ranges.ndim == 1:
    ranges = np.tile(ranges, (max_new, 1))
  if ranges.shape[-2:] != (max_new, 2) or ranges.ndim > 3:
    raise ValueError(f"allowed has shape {ranges.shape}; it needs [{max_new} 2] or [b {max_new} 2]")
  return ranges


def generate_tokens(
  module: qwen2.Qwen2,
  params: Any,
  prompt: Array,
  prompt_mask: Array,
  seeds: Array,
  *,
  max_new: int,
  stop_ids: Sequence[int] = (),
  allowed: Allowed | None = None,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  repetition_penalty: float = 1.0,
  vocab_limit: int | None = None,
  pad_id: int = 0,
  also: str = "",
  embeds: Array | None = None,
) -> Any:
  """Continues prompts with a language model, until every row has met a stop id.

  Order: repetition penalty over prompt and answer, then the allowed ids, then temperature, top-k
  and top-p.

  Args:
    module: a Qwen2.
    params: its parameters.
    prompt: int32[b l], padded on the left.
    prompt_mask: int or bool[b l], 1 for words; positions are counted from the first word.
    seeds: uint32[b].
    max_new: number of draws, static.
    stop_ids: a row that has drawn one of these (the id itself is kept) goes on with pad_id.
    allowed: which ids may be drawn, as (first, last), both included; or int32[max_new 2] or
      int32[b max_new 2] with a pair per draw; or a function of the draw's index. Exactly N image
      words come from N pairs of the image range, then pairs of the ids that must follow.
    vocab_limit: ids from here on (padding rows of the table) are never drawn.
    also: "logprobs" also returns float32[b max_new], the log-probability of each drawn word under
      the model at temperature 1 within the allowed ids; "logits" float32[b max_new v] before
      penalty and limits. Both are 0 after a stop id.
    embeds: float[b l d], what the prompt is to the model in the place of its words' rows.

  Returns:
    int32[b max_new], or with `also` a pair.

  Raises:
    ValueError: a setting out of range.
  """
  if also not in ("", "logprobs", "logits") or repetition_penalty <= 0 or max_new < 1:
    raise ValueError(
      f"also={also!r}, repetition_penalty={repetition_penalty}, max_new={max_new}: "
      "need '', 'logprobs' or 'logits', above 0, at least 1"
    )
  rules = {
    "allowed": None if allowed is None else allowed_ranges(allowed, max_new),
    "limit": None if vocab_limit is None else np.int32(vocab_limit),
    "penalty": None if repetition_penalty == 1 else np.float32(repetition_penalty),
    "draw": draw_settings(temperature, top_k, top_p),
    "stop": np.asarray(stop_ids, np.int32),
    "pad": np.int32(pad_id),
  }
  mask = jnp.asarray(prompt_mask).astype(bool)
  tokens, extra = _tokens(module, params, prompt, mask, seeds, rules, max_new, also, embeds)
  return (tokens, extra) if also else tokens


def limit_logits(logits: Array, t: Array, seen: Array | None, rules: dict[str, Any]) -> Array:
  """Repetition penalty, vocabulary limit and allowed ids of draw t, on float32[b v]."""
  ids = jnp.arange(logits.shape[-1])
  if seen is not None:
    penalty = jnp.where(logits < 0, rules["penalty"], 1 / rules["penalty"])
    logits = jnp.where(seen, logits * penalty, logits)
  if rules["limit"] is not None:
    logits = jnp.where(ids < rules["limit"], logits, REMOVED)
  if rules["allowed"] is not None:
    pair = jnp.asarray(rules["allowed"])[..., t, :][..., None]  # [2 1] or [b 2 1]
    ok = (ids >= pair[..., 0, :]) & (ids <= pair[..., 1, :])
    logits = jnp.where(ok, logits, REMOVED)
  return logits


def draw_tokens(
  logits: Array, state: dict[str, Any], seeds: Array, rules: dict[str, Any], also: str
):
  """Draws word t = state["t"] from float32[b v] and writes down all that follows from it."""
  t, rows, done = state["t"], jnp.arange(logits.shape[0]), state["done"]
  limited = limit_logits(logits, t, state["seen"], rules)
  tokens = sample(row_keys(seeds, t), limited, **rules["draw"])
  extra = state["extra"]
  if also == "logprobs":
    chosen = jax.nn.log_softmax(limited, -1)[rows, tokens]
    extra = extra.at[:, t].set(jnp.where(done, 0, chosen))
  elif also == "logits":
    extra = extra.at[:, t].set(jnp.where(done[:, None], 0, logits))
  tokens = jnp.where(done, rules["pad"], tokens)
  seen = state["seen"]
  return {
    "t": t + 1,
    "tokens": tokens,
    "out": state["out"].at[:, t].set(tokens),
    "done": done | jnp.isin(tokens, rules["stop"]),
    "seen": None if seen is None else seen.at[rows, tokens].set(True),
    "extra": extra,
  }


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def _tokens(module, params, prompt, mask, seeds, rules, max_new, also, embeds):
  b, l = prompt.shape
  s, counts = l + max_new - 1, mask.sum(1)
  words = jnp.concatenate([mask, jnp.ones((b, max_new - 1), bool)], 1)  # [b s]

  def run(ids, positions, cache, index, **embeds):
    past = jnp.arange(s) <= index + jnp.arange(positions.shape[1])[:, None]  # [l s]
    where: Any = {"positions": positions, "mask": words[:, None] & past}  # [b l s]
    given = {"params": params}, ids
    hidden, cache = module.apply(*given, **embeds, **where, cache=cache, index=index)
    logits = module.apply({"params": params}, hidden[:, -1:], method="logits")
    return logits[:, 0], cache  # [b v]

  def more(carry):
    return (carry[0]["t"] < max_new) & ~carry[0]["done"].all()

  def step(carry):
    state, cache = carry
    t = state["t"] - 1  # the word drawn last, which is fed now
    logits, cache = run(state["tokens"][:, None], (counts + t)[:, None], cache, l + t)
    return draw_tokens(logits, state, seeds, rules, also), cache

  positions = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
  cache = qwen2.empty_cache(module.config, b, s)
  if embeds is None:
    logits, cache = run(prompt, positions, cache, 0)
  else:
    logits, cache = run(None, positions, cache, 0, embeds=embeds)
  seen = None
  if rules["penalty"] is not None:
    seen = jnp.zeros(logits.shape, bool).at[jnp.arange(b)[:, None], prompt].max(mask)
  shape = {"": (0,), "logprobs": (b, max_new), "logits": (b, max_new, logits.shape[1])}[also]
  state = {
    "t": jnp.int32(0),
    "out": jnp.full((b, max_new), rules["pad"]),
    "done": jnp.zeros(b, bool),
    "seen": seen,
    "extra": jnp.zeros(shape, jnp.float32),
  }
  state = draw_tokens(logits, state, seeds, rules, also)
  state, _ = jax.lax.while_loop(more, step, (state, cache))
  return state["out"], state["extra"]
