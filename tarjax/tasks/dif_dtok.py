"""Dif-DTok: SANA that learns to draw DC-AE latents from TA-Tok's features (paper Sec. 3.2, Eq. 5).

Flow matching. By default only what reads the condition is trained: the cross-attention and the
embedding of the condition. The rest of SANA is frozen; it is never among the parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarjax import diffusion, losses
from tarjax.models.dc_ae import DcAe, DcAeConfig
from tarjax.models.dif_dtok import DifDtok, DifDtokConfig
from tarjax.models.layers import normal
from tarjax.models.ta_tok import TaTok, TaTokConfig
from tarjax.sharding import named
from tarjax.tasks import ta_tok
from tarjax.tasks.ar_dtok import DECODING
from tarjax.tasks.inputs import Field, draw_scale, pixels, word_fields

TRAINED = ("condition", "all")


class Task:
  """Batches are `images`, and codes and latents are computed from them, or `latents`.

  images: image uint8[b y x 3] of any size; TA-Tok and DC-AE resize it to theirs.
  latents: codes1..3 int32[b n_s], and latent float32[b y x c], as SANA sees them (scaled).

  Config keys: `ta_tok`, `dc_ae` (the networks), `ta_tok_from`, `dc_ae_from`, `sana_from`
  (checkpoints; without the last, SANA starts at random), `dc_ae_size` (pixels a side), `trained`
  ("condition" or "all"), `shift` of the noise levels, `cond_dropout`, and `scales`, which weighs
  the pool scales.
  """

  def __init__(self, config):
    self.config = config
    self.net = DifDtokConfig(**config.model)
    self.model: Any = DifDtok(self.net)
    self.ta_tok: Any = TaTok(TaTokConfig(**config.ta_tok))
    self.dc_ae: Any = DcAe(DcAeConfig(**config.dc_ae))
    latent = Field((self.net.size, self.net.size, self.net.channels), np.float32)
    self.fields = word_fields(self.ta_tok.cfg) | {"latent": latent}
    self.reads_images = config.data.format == "images"
    if config.trained not in TRAINED:
      raise ValueError(f"config.trained={config.trained!r} is none of {TRAINED}")
    if config.trained == "condition" and not config.get("sana_from"):
      raise ValueError("config.trained='condition' leaves most of SANA as it is: name sana_from")
    if self.net.guidance:
      raise ValueError("a distilled SANA with a guidance input cannot be trained by flow matching")
    channels = (self.dc_ae.config.latent, self.net.channels)
    if len(set(channels)) > 1:
      raise ValueError(f"DC-AE's latents have {channels[0]} channels, SANA's {channels[1]}")

  def init(self, rng):
    return self.split(self._init(rng))[0]

  def _init(self, rng):
    side = self.net.patch
    latents = jnp.zeros((1, side, side, self.net.channels))
    cond = jnp.zeros((1, 1, self.net.cond_width))
    return self.model.init(rng, latents, jnp.zeros(1), cond)["params"]

  def split(self, params) -> tuple[Any, Any]:
    """SANA's parameters -> (trained, frozen); `join` is the inverse."""
    if self.config.trained == "all":
      return dict(params), {}
    blocks = dict(params["blocks"])
    trained = {"cond": params["cond"], "blocks": {"cross": blocks.pop("cross")}}
    return trained, {**{k: v for k, v in params.items() if k != "cond"}, "blocks": blocks}

  def init_frozen(self, rng):
    keys = jax.random.split(rng, 3)
    side = self.ta_tok.cfg.encoder.image
    whole = self.ta_tok.init(keys[0], jnp.zeros((1, side, side, 3)), scale=1)["params"]
    width = self.net.cond_width
    null = named(normal(width**-0.5), "position", "act_embed")
    frozen: dict[str, Any] = {"ta_tok": self._of_ta_tok(whole)}
    frozen["null"] = null(keys[1], (self.ta_tok.cfg.tokens(1), width), jnp.float32)
    if self.config.trained != "all":
      frozen["sana"] = self.split(self._init(keys[2]))[1]
    if self.reads_images:
      images = jnp.zeros((1, self.dc_ae.config.factor, self.dc_ae.config.factor, 3))
      frozen["encoder"] = self.dc_ae.init(keys[2], images)["params"]["encoder"]
    return frozen

  def _of_ta_tok(self, whole):
    """All of TA-Tok if codes are to be computed, else what decodes them."""
    return {k: v for k, v in whole.items() if self.reads_images or k in DECODING}

  def start(self, params, frozen, load, workdir, batch):
    """Takes the networks of other runs, and draws the null condition from the seed.

    A projection of the condition that has another width than SANA's is left at random.
    """
    config, frozen = self.config, dict(frozen)
    spec = config.ta_tok_from
    frozen["ta_tok"] = self._of_ta_tok(ta_tok.merge(load(spec), load(spec, frozen=True)))
    rng = np.random.default_rng(config.seed)
    null = rng.normal(0, self.net.cond_width**-0.5, frozen["null"].shape)
    frozen["null"] = null.astype(np.float32)
    if self.reads_images:
      frozen["encoder"] = load(config.dc_ae_from)["encoder"]
    if config.get("sana_from"):
      whole = load(config.sana_from)
      first, new = whole["cond"]["fc1"], params["cond"]["fc1"]
      if first["kernel"].shape != new["kernel"].shape:
        whole["cond"] = dict(whole["cond"], fc1=new)
        widths = first["kernel"].shape[0], self.net.cond_width
        print(f"SANA's condition is {widths[0]} wide: a new projection from {widths[1]}")
      params, rest = self.split(whole)
      frozen |= {"sana": rest} if rest else {}
    return params, frozen

  def static(self, step):
    return {"scale": draw_scale(self.config, step)}

  def loss(self, params, frozen, batch, rng, *, train, scale):
    """Mean squared error of the velocity at logit-normal noise levels."""
    places, drawn, dropped = jax.random.split(rng, 3)
    cond, latents = self.inputs(frozen, batch, scale)
    if train:
      null = frozen["null"][: cond.shape[1]]
      drop = jax.random.bernoulli(dropped, self.config.cond_dropout, (len(cond), 1, 1))
      cond = jnp.where(drop, null, cond)
    sigmas, times = diffusion.draw_sigmas(places, len(latents), self.config.shift)
    noise = jax.random.normal(drawn, latents.shape)
    noisy, target = diffusion.add_noise(latents, noise, sigmas)
    whole = join(params, frozen.get("sana"))
    velocity = self.model.apply({"params": whole}, noisy, times, cond)
    loss = losses.mse(velocity[..., : self.net.channels], target)
    return loss, {"explained": 1 - loss / target.var(), "latent_rms": jnp.sqrt((latents**2).mean())}

  def inputs(self, frozen, batch, scale: int):
    """TA-Tok's features float32[b n w] and scaled latents float32[b y x c] of a batch."""
    tokenizer = {"params": frozen["ta_tok"]}
    if self.reads_images:
      images = pixels(batch["image"])
      codes = self.ta_tok.apply(tokenizer, images, scale, method="encode")
      latents = self.encode(frozen["encoder"], images)
    else:
      codes, latents = batch[f"codes{scale}"], batch["latent"]
    return self.ta_tok.apply(tokenizer, codes, method="decode_indices"), latents

  def encode(self, encoder, images):
    """Pictures float32[b y x 3] in [-1, 1] -> scaled latents float32[b h w c] of DC-AE's size."""
    side = self.config.dc_ae_size
    if images.shape[1:3] != (side, side):
      images = jax.image.resize(images, (len(images), side, side, images.shape[-1]), "cubic")
    latents: Any = self.dc_ae.apply({"params": {"encoder": encoder}}, images, method="encode")
    return latents * self.dc_ae.config.scaling


def join(params, rest):
  """Trained and frozen parameters -> those of a `DifDtok`."""
  if not rest:
    return params
  return {**rest, **params, "blocks": {**rest["blocks"], **params["blocks"]}}
