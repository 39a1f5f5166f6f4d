"""TarPipeline: a bundle of checkpoints (`tarjax.bundle`) that reads and draws, for every verb."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tarjax import bundle as bundles
from tarjax import sampling, subcodes
from tarjax.bundle import OPTIONAL, pool_scale
from tarjax.config import UserError
from tarjax.data import tokens, transforms
from tarjax.detokenizer import DifDetokenizer
from tarjax.devices import Devices
from tarjax.models.siglip2 import VisionTower
from tarjax.models.ta_tok import pool
from tarjax.models.vqvae import to_uint8
from tarjax.prompts import Prompt, only_codes, padded, until, with_images
from tarjax.representations import make_representation
from tarjax.tasks import ta_tok
from tarjax.tasks.inputs import pixels

DETOKENIZERS = ("ar", "dif")


class Drawn(NamedTuple):
  image: np.ndarray  # uint8[y x 3]
  codes: np.ndarray  # int32[n] visual words, or int32[n m] sub-codes


class TarPipeline:
  """Load it with `TarPipeline.load(folder)`; batches of any size are cut to `batch`.

  Components that are missing are None. Those in `training` are runs that have not ended, by their
  configs; `settle` brings their parameters.
  """

  def __init__(
    self,
    folder: Path,
    bundle: dict,
    batch: int = 64,
    devices: Devices | None = None,
    training: Mapping[str, Any] | None = None,
  ):
    self.folder, self.bundle, self.batch = folder, bundle, batch
    self.devices = devices or Devices()
    parts, training = bundle["components"], training or {}
    self.tok: Any = None
    self.vocab: Any = None
    if "tokenizer" in parts:
      self.tok = tokens.load_tokenizer(folder / parts["tokenizer"])
      self.vocab = tokens.make_vocab(self.tok)
    config = bundles.configs(folder, bundle, training)
    modules = bundles.networks(config)
    self.mllm: Any = modules.get("mllm")
    self.ta_tok: Any = modules.get("ta_tok")
    self.ar_dtok: Any = modules.get("ar_dtok")
    self.vqvae: Any = modules.get("vqvae")
    bundles.check(bundle, modules, config.get("mllm"), self.vocab)
    self.representation = make_representation(config.get("mllm", ConfigDict()), modules)
    self.codes = self.representation.num_ids
    self._stored, self.frozen = bundles.load(folder, bundle, config.keys() - training.keys())
    self.checked = lambda: bundles.check_weights(modules, self._stored)
    self.dif: DifDetokenizer | None = None
    runs = [folder / parts[name] for name in OPTIONAL if name in parts]
    fits = self.representation.scales and not training
    if fits and len(runs) == len(OPTIONAL) and all(run.is_dir() for run in runs):
      self.dif = DifDetokenizer(*runs)
    self._compiled: dict[Any, Any] = {}
    self.release()

  @classmethod
  def load(
    cls,
    folder: str | Path,
    batch: int = 64,
    devices: Devices | None = None,
    needed: Collection[str] | None = None,
  ) -> "TarPipeline":
    """Reads bundle.json and all that it names; `needed` as in `bundle.read`.

    Raises:
      UserError: no bundle, a missing component, or components that do not fit each other.
    """
    pipe = cls(Path(folder), bundles.read(Path(folder), needed), batch, devices)
    pipe.settle()
    return pipe

  def settle(self, trained: Mapping[str, Any] | None = None, frozen: Any = None) -> None:
    """Puts the parameters on the devices.

    Args:
      trained: of the components in training, which are there already.
      frozen: the frozen tree of a TA-Tok in training, or of an MLLM.
    """
    params = self.devices.copy(self._stored) | dict(trained or {})
    if frozen and "ta_tok" in (trained or {}):
      self.frozen, params["ta_tok"] = frozen, ta_tok.merge(params["ta_tok"], frozen)
    elif frozen:
      params |= frozen
    self.params, self.trees = params, dict(params)
    if self.ta_tok:
      book = self.compiled(
        "codebook", lambda p: self.ta_tok.apply({"params": p}, method="codebook")
      )
      with self.checked():
        self.trees["codebook"] = book(params["ta_tok"])

  def release(self) -> None:
    """Leaves the devices to others, until the next `settle`."""
    self.params: dict[str, Any] = {}
    self.trees: dict[str, Any] = {}  # as the representation takes them

  # Pictures in

  def prepare(self, image: np.ndarray) -> np.ndarray:
    """uint8[y x 3] of any size -> uint8 at the encoder's size."""
    return transforms.squash(image, self.representation.side)

  def encode(self, images: Sequence[np.ndarray], scale: int | None = None) -> np.ndarray:
    """Pictures uint8[y x 3] -> visual words int32[b n], or embeddings float[b n d]."""
    scale = pool_scale(self.bundle, scale, 1)

    def run(trees, x):
      return self.representation.encode(trees, x, scale)

    small = np.stack([self.prepare(i) for i in images])
    return self._map(("encode", scale), run, (self.trees,), small)

  def show(self, images: Sequence[np.ndarray], scale: int | None) -> list[np.ndarray]:
    """What stands for pictures uint8[y x 3] in a `prompt`: words int32[n], or pictures again."""
    if len(images) and self.representation.understanding == "ids":
      return list(self.encode(images, scale))
    return [self.prepare(image) for image in images]

  def features(self, images: Sequence[np.ndarray], scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Reconstructed and teacher features, float32[b n d] each, for the reconstruction cosine."""
    cfg = self.ta_tok.cfg
    teacher: Any = VisionTower(cfg.encoder, blocks=cfg.blocks, post_norm=False, head=False)

    def run(params, frozen, x):
      x = pixels(x)
      rec = self.ta_tok.apply({"params": params}, x, scale=scale)["rec"]
      target = pool(teacher.apply({"params": frozen}, x)[0], scale)
      return jnp.stack([rec, target], 1)

    small = np.stack([self.prepare(i) for i in images])
    teachers = self.devices.copy(self.frozen["teacher"])
    both = self._map(("features", scale), run, (self.params["ta_tok"], teachers), small)
    return both[:, 0], both[:, 1]

  # Pictures out

  def draw(
    self, codes: np.ndarray, seeds: Sequence[int], detokenizer: str = "ar", **settings
  ) -> np.ndarray:
    """Visual words int32[b n] -> pictures uint8[b y x 3].

    Args:
      codes: of any scale.
      seeds: one per picture.
      detokenizer: "ar" is AR-DTok and the VQVAE (the VQVAE alone where words are its codes), "dif"
        Dif-DTok and the DC-AE.
      settings: in the place of the bundle's "pixels" (ar) or "dif".

    Raises:
      UserError: an unknown de-tokenizer, or one that the bundle does not have.
    """
    dif = self.detokenizer(detokenizer)
    chosen = drop_none(settings)
    if self.representation.scales:  # de-tokenizers sample, the VQVAE's decoder does not
      chosen = {**self.bundle["sampling"].get("dif" if dif else "pixels", {}), **chosen}

    pictures, numbers = [], np.asarray(seeds, np.uint32)
    words: Any = self.representation
    for rows, real in self.devices.batches(len(codes), self.batch):
      ids = self.devices.rows(codes[rows])
      if dif:
        with self.checked():
          cond = words.condition(self.trees, ids)
        cond = jnp.asarray(self.devices.host(cond))  # on the default device, as Dif-DTok is
        pictures.append(dif.draw(cond, numbers[rows], **chosen)[:real])
        continue
      seed = self.devices.rows(numbers[rows])
      with self.checked():
        drawn = words.decode(self.trees, ids, seed, **chosen)
      pictures.append(to_uint8(self.devices.host(drawn)[:real]))
    return self._canvas(np.concatenate(pictures))

  def detokenizer(self, name: str) -> DifDetokenizer | None:
    """Dif-DTok for "dif", None for "ar".

    Raises:
      UserError: another name, or no Dif-DTok in this bundle.
    """
    if name not in DETOKENIZERS:
      raise UserError(f"the detokenizer is one of {DETOKENIZERS}, not {name!r}")
    if name == "dif" and self.dif is None:
      raise UserError(f"{self.folder} has no Dif-DTok: train dc_ae and dif_dtok first")
    return self.dif if name == "dif" else None

  def reconstruct(
    self, images: Sequence[np.ndarray], scale: int, seeds=None, detokenizer: str = "ar"
  ) -> np.ndarray:
    """Picture -> visual words -> picture, uint8[b y x 3]."""
    seeds = range(len(images)) if seeds is None else seeds
    return self.draw(self.encode(images, scale), list(seeds), detokenizer)

  def reconstruct_vqvae(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """Picture -> VQVAE -> picture, uint8[b y x 3]: the ceiling of AR-DTok."""
    return self._canvas(to_uint8(self._through_vqvae(images, "rec")))

  def encode_vqvae(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures uint8[y x 3] -> codes int32[b h w] of the VQVAE."""
    return self._through_vqvae(images, "indices")

  def _through_vqvae(self, images, name: str) -> np.ndarray:
    def run(params, x):
      return self.vqvae.apply({"params": params}, pixels(x))[name]

    side = self.bundle["preprocessing"]["drawn"]
    small = np.stack([transforms.squash(i, side) for i in images])
    return self._map(("vqvae", name), run, (self.params["vqvae"],), small)

  def reconstruct_dc_ae(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """Picture -> DC-AE -> picture, uint8[b y x 3]: the ceiling of Dif-DTok."""
    dif: Any = self.detokenizer("dif")
    small = np.stack([transforms.squash(i, dif.side) for i in images])
    parts = self.devices.batches(len(small), self.batch)
    return self._canvas(np.concatenate([dif.rebuild(small[rows])[:real] for rows, real in parts]))

  def _canvas(self, pictures: np.ndarray) -> np.ndarray:
    """uint8[b y x 3] at the size they were drawn -> at the size of the bundle's canvas."""
    side = self.bundle["preprocessing"]["canvas"]
    return np.stack([transforms.squash(p, side) for p in pictures])

  # The language model

  def generate(
    self,
    prompts: Sequence[str],
    images: Sequence[Sequence[np.ndarray]] | None = None,
    *,
    scale: int | None = None,
    seeds: Sequence[int] | None = None,
    constrained: bool = True,
    detokenizer: str = "ar",
    **settings,
  ) -> list[Drawn]:
    """Prompts -> pictures.

    Args:
      prompts: one text per picture; `<image>` marks where its images go (in front if unmarked).
      images: per prompt, the pictures uint8[y x 3] it refers to.
      scale: 1, 2 or 3; None is the bundle's default, or that there are none.
      seeds: one per picture; the same seed gives the same picture in any batch.
      constrained: exactly as many visual words as the scale has; otherwise the model is free, and
        what it leaves out is filled with code 0, as in the reference.
      detokenizer: "ar" or "dif".
      settings: temperature, top_k, top_p of the visual words.

    Raises:
      UserError: an empty prompt, a scale that is not 1, 2 or 3, placeholders without images, no
        such detokenizer.
    """
    self.detokenizer(detokenizer)
    seeds = list(range(len(prompts))) if seeds is None else list(seeds)
    asked = dict(scale=scale, seeds=seeds, constrained=constrained)
    codes = self.visual_words(prompts, images, **asked, **settings)
    return [Drawn(*d) for d in zip(self.draw(codes, seeds, detokenizer), codes, strict=True)]

  def visual_words(
    self, prompts, images=None, *, seeds, scale=None, constrained=True, **settings
  ) -> np.ndarray:
    """What `generate` paints with the same arguments: int32[b n]."""
    scale = pool_scale(self.bundle, scale)
    count = self.representation.tokens_per_image(scale)
    chosen = {**self.bundle["sampling"]["image"], **drop_none(settings)}
    pairs, drawing = with_images(prompts, images), dict(draw=True, scale=scale)
    asked = [self.prompt(text, self.show(own, scale), **drawing) for text, own in pairs]
    first = self.vocab.image0
    if self.representation.layout.books:
      if not constrained:
        raise UserError("sub-codes are drawn where a picture stands: --unconstrained has no sense")
      return self._places(asked, seeds, count, **chosen)
    if constrained:
      chosen["allowed"] = (first, first + self.codes - 1)
    stops = () if constrained else self.vocab.stops
    ids = self._speak(asked, seeds, count, stops, **chosen)
    return np.stack([only_codes(row, first, self.codes, count) for row in ids])

  def describe(
    self,
    images: Sequence[np.ndarray | Sequence[np.ndarray]],
    questions: Sequence[str],
    *,
    scale: int | None = None,
    seeds: Sequence[int] | None = None,
    max_new: int = 64,
    **settings,
  ) -> list[str]:
    """Answers to one question per picture, or per list of pictures; greedy as bundles are made."""
    scale = pool_scale(self.bundle, scale)
    groups = [[i] if isinstance(i, np.ndarray) else list(i) for i in images]
    shown = iter(self.show([image for group in groups for image in group], scale))
    asked = []
    for question, group in zip(questions, groups, strict=True):
      if not question.strip():
        raise UserError("the question is empty")
      text = " ".join([tokens.PLACEHOLDER] * len(group)) + f"\n{question}"
      asked.append(self.prompt(text, list(itertools.islice(shown, len(group)))))
    seeds = list(range(len(asked))) if seeds is None else list(seeds)
    chosen = {**self.bundle["sampling"]["text"], **drop_none(settings)}
    text = (0, self.vocab.im_start - 1)
    ids = self._speak(asked, seeds, max_new, self.vocab.stops, allowed=text, **chosen)
    stops = set(self.vocab.stops)
    return [self.tok.decode(until(row, stops)).strip() for row in ids]

  def prompt(self, text: str, shown: Sequence[np.ndarray], **drawing) -> Prompt:
    """What a user says, with what stands for its pictures, as `show` gives it or as drawn words.

    Args:
      drawing: `draw` and `scale` of `tokens.chat_prompt`, when the answer is a picture.
    """
    layout, turn = self.representation.layout, {"from": "human", "value": text}
    codes = [layout.stands(one) for one in shown]
    ids = tokens.chat_prompt(self.tok, self.vocab, [turn], codes, **drawing)
    return Prompt(ids, list(shown) if layout.carries else [])

  def inputs(self, ids: np.ndarray, pictures: Sequence[list[np.ndarray]]) -> dict[str, jax.Array]:
    """Rows of prompts, padded to int32[b l], as Qwen2 takes them: {"ids"} and maybe {"embeds"}."""
    given = {"ids": self.devices.rows(ids)}
    if not any(pictures):
      return given
    layout = self.representation.layout
    rows = [layout.carried(row, self.vocab, own) for row, own in zip(ids, pictures, strict=True)]
    batch = {k: self.devices.rows(np.stack([row[k] for row in rows])) for k in rows[0]}
    batch["tokens"] = given["ids"]

    def run(trees, batch):
      return self.representation.inputs(self.mllm, trees, batch)

    return given | self.compiled("inputs", run)(self.trees, batch)

  def _speak(self, prompts: Sequence[Prompt], seeds, max_new: int, stops, **settings) -> np.ndarray:
    """Prompts -> new ids int32[b max_new]; lengths are bucketed, left-padded."""
    settings |= {"max_new": max_new, "stop_ids": stops, "pad_id": self.vocab.pad}
    settings["vocab_limit"] = self.vocab.image0 + self.codes

    def new(given, mask, seeds):
      ids, nets = given.pop("ids"), (self.mllm, self.params["mllm"])
      return sampling.generate_tokens(*nets, ids, mask, seeds, **given, **settings)

    return self._sampled(new, prompts, seeds)

  def _places(self, prompts: Sequence[Prompt], seeds, count: int, **settings) -> np.ndarray:
    """Prompts -> the sub-codes of `count` places that follow, int32[b count m]."""
    words: Any = self.representation
    nets = (self.mllm, words.head, self.params["mllm"])

    def new(given, mask, seeds):
      return subcodes.generate_subcodes(*nets, given, mask, seeds, count=count, **settings)

    return self._sampled(new, prompts, seeds)

  def _sampled(self, new, prompts: Sequence[Prompt], seeds) -> np.ndarray:
    ids, mask = padded(prompts, self.vocab.pad, left=True)
    out, seeds = [], np.asarray(seeds, np.uint32)
    for rows, real in self.devices.batches(len(prompts), self.batch):
      given = self.inputs(ids[rows], [prompts[i].pictures for i in rows])
      with self.checked():
        drawn = new(given, *(self.devices.rows(x[rows]) for x in (mask, seeds)))
      out.append(self.devices.host(drawn)[:real])
    return np.concatenate(out)

  # Compiled once per shape

  def compiled(self, key, function):
    """jax.jit of a function, once per key."""
    if key not in self._compiled:
      self._compiled[key] = jax.jit(function)
    return self._compiled[key]

  def _map(self, key, function, trees, array: np.ndarray) -> np.ndarray:
    out = []
    for rows, real in self.devices.batches(len(array), self.batch):
      with self.checked():
        made = self.compiled(key, function)(*trees, self.devices.rows(array[rows]))
      out.append(self.devices.host(made)[:real])
    return np.concatenate(out)


def drop_none(settings: dict) -> dict:
  return {k: v for k, v in settings.items() if v is not None}
