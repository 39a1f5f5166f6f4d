"""Image to TA-Tok codes, to features, to VQ codes, to image: the file with all three networks.

The original keeps them in one state dict: `encoder.` is TA-Tok, `ar_model.` the autoregressive
de-tokenizer and `decoder.model.` the VQ (paper Sec. 3.1 and 3.2).
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarjax.convert import ar_dtok, vqvae
from tarjax.convert.rules import ConversionError, Tree
from tarjax.convert.ta_tok import import_ta_tok, scaled, ta_tok_config
from tarjax.models.ar_dtok import ArDtok
from tarjax.models.ta_tok import SCALES, TaTok
from tarjax.models.vqvae import VqVae, to_uint8
from tarjax.sampling import generate_codes

PARTS = ("encoder.", "ar_model.", "decoder.model.")
SCALING = "decoder.scale_layer."  # maps the decoder's [-1, 1] to [0, 1]


def split_parts(sd: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
  """One state dict -> those of TA-Tok, of the AR de-tokenizer and of the VQ.

  Raises:
    ConversionError: a name that belongs to none, or pixels scaled otherwise than from [-1, 1].
  """
  left = [n for n in sd if not n.startswith((*PARTS, SCALING))]
  if left:
    raise ConversionError(f"{left[0]} belongs to none of {', '.join(PARTS)}")
  if any((sd[n] != 0.5).any() for n in sd if n.startswith(SCALING)):
    raise ConversionError(f"{SCALING}* maps pixels otherwise than from [-1, 1]")
  return [{n[len(p) :]: t for n, t in sd.items() if n.startswith(p)} for p in PARTS]


def as_jax(tree: Tree) -> Tree:
  return jax.tree.map(jnp.asarray, tree)


def run_parity(
  config: Mapping[str, Any], sd: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Every stage of a recorded run at the three scales; greedy, with the recorded guidance."""
  first, second, third = split_parts(sd)
  e = config["ta_tok"]
  encoder = ta_tok_config(
    e["ta_tok_args"], e["encoder_vision_config"], e.get("decoder_siglip2_defaults")
  )
  tok, tok_params = TaTok(encoder), {"params": as_jax(import_ta_tok(encoder, first)[0])}
  middle = ar_dtok.ar_dtok_config(config["ar"])
  ar, ar_params = ArDtok(middle), as_jax(ar_dtok.from_torch(middle, second))
  decoder = vqvae.vqvae_config(config["vq"])
  vq, vq_params = VqVae(decoder), {"params": as_jax(vqvae.from_torch(decoder, third))}
  guidance = config["sample_args"]["cfg_scale"]

  @functools.partial(jax.jit, static_argnums=1)
  def read(images, scale):
    features = tok.apply(tok_params, images, method="features")
    found: Any = tok.apply(tok_params, features, scale, method="quantize")
    rec = tok.apply(tok_params, found["quant"], method="decode")
    again = tok.apply(tok_params, found["indices"], method="decode_indices")
    return found["indices"], rec, again

  @jax.jit
  def picture(codes):
    return vq.apply(vq_params, codes, method="decode_indices")

  def draw(rec):
    seeds = np.zeros(len(rec), np.uint32)
    args: Any = {"guidance_scale": guidance, "temperature": 0.0, "return_logits": True}
    codes, logits = generate_codes(ar, ar_params, rec, seeds, **args)
    return codes, logits, np.asarray(picture(codes))

  outputs: dict[str, Any] = {}
  for scale in SCALES:
    indices, rec, again = read(scaled(inputs["x"]), scale)
    codes, logits, image = draw(rec)
    found = {
      "indices": indices,
      "rec": rec,
      "ar_tokens": codes,
      "ar_logits": logits,
      "image_float": vqvae.nchw(image) * 0.5 + 0.5,
      "image": to_uint8(image),
      "image_from_indices": to_uint8(draw(again)[2]),
    }
    outputs |= {f"s{scale}.{name}": np.asarray(value) for name, value in found.items()}
  return outputs
