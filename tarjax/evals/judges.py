"""The networks that judge pictures, in PyTorch: Mask2Former finds objects, CLIP sees colours.

They are read from local folders as Hugging Face stores them, and need requirements-judges.txt.
Pictures go in as mmdetection's test pipeline and OpenAI's CLIP take them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tarjax.config import UserError
from tarjax.evals.geneval_rules import COLOURS, Thing

# fmt: off
NAMES = (  # COCO's 80 classes in their order, three of them as GenEval calls them
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
TEMPLATES = (
  "a photo of a {colour} {name}",
  "a photo of a {colour}-colored {name}",
  "a photo of a {colour} object",
)
GREY = "#999"  # what stands behind an object whose colour is asked
SHORT, LONG = 800, 1333  # sides that the detector's pictures are resized to
MULTIPLE = 32  # to which they are padded
DETECTIONS = 100
DETECTOR_MEAN, DETECTOR_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def torch_of() -> Any:
  try:
    import torch
    import transformers  # noqa: F401
  except ImportError as e:
    raise UserError("judging needs PyTorch: pip install -r requirements-judges.txt") from e
  return torch


def from_folder(kind: str, folder: str | Path, **options) -> Any:
  """A transformers class by name, read from a folder; nothing is downloaded."""
  import transformers

  if not Path(folder).is_dir():
    raise UserError(f"{folder} is not a folder with a {kind}")
  try:
    return getattr(transformers, kind).from_pretrained(folder, local_files_only=True, **options)
  except (OSError, ValueError, RuntimeError, KeyError) as e:
    raise UserError(f"{folder} holds no {kind}: {str(e).splitlines()[0]}") from e


class Detector:
  """Mask2Former's instances: `find(image) -> {class: objects}`."""

  def __init__(self, folder: str | Path):
    self.torch = torch_of()
    self.device = "cuda" if self.torch.cuda.is_available() else "cpu"
    self.net = from_folder("Mask2FormerForUniversalSegmentation", folder).to(self.device).eval()
    if self.net.config.num_labels != len(NAMES):
      raise UserError(
        f"{folder} finds {self.net.config.num_labels} classes, not COCO's {len(NAMES)}"
      )

  def find(self, image: Image.Image) -> dict[str, list[Thing]]:
    torch, sides = self.torch, (image.height, image.width)
    pixels, mask, inner = self._prepare(image)
    with torch.no_grad():
      out = self.net(pixel_values=pixels, pixel_mask=mask)
    logits, masks = out.class_queries_logits[0], out.masks_queries_logits[:1]
    masks = self._resize(masks, tuple(pixels.shape[2:]))[..., : inner[0], : inner[1]]
    masks = self._resize(masks, sides)[0]  # [q y x]
    scores = logits.softmax(-1)[:, :-1]  # without "no object"
    best, at = scores.flatten().topk(min(DETECTIONS, scores.numel()))
    found: dict[str, list[Thing]] = {}
    for score, i in zip(best.tolist(), at.tolist(), strict=True):
      query, label = divmod(i, len(NAMES))
      inside = masks[query] > 0
      if not inside.any():
        continue
      sure = (masks[query].sigmoid() * inside).sum() / (inside.sum() + 1e-6)
      shape = inside.cpu().numpy()
      ys, xs = np.where(shape.any(1))[0], np.where(shape.any(0))[0]
      box = (float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1))
      found.setdefault(NAMES[label], []).append(Thing(box, score * float(sure), shape))
    return found

  def _prepare(self, image: Image.Image):
    """(pixels [1 3 y x], mask [1 y x], size before padding)."""
    torch = self.torch
    scale = min(SHORT / min(image.size), LONG / max(image.size))
    inner = tuple(int(side * scale + 0.5) for side in (image.height, image.width))
    x = torch.tensor(np.asarray(image.convert("RGB")), dtype=torch.float32, device=self.device)
    x = self._resize(x.permute(2, 0, 1)[None], inner).round()
    mean, std = (torch.tensor(v, device=self.device) for v in (DETECTOR_MEAN, DETECTOR_STD))
    x = (x - mean[:, None, None]) / std[:, None, None]
    outer = tuple(-(-side // MULTIPLE) * MULTIPLE for side in inner)
    pixels, mask = x.new_zeros(1, 3, *outer), x.new_zeros(1, *outer)
    pixels[..., : inner[0], : inner[1]], mask[:, : inner[0], : inner[1]] = x, 1
    return pixels, mask.long(), inner

  def _resize(self, x, size: tuple[int, ...]):
    return self.torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)


class Clip:
  """CLIP: `paint` names the colours of objects, `similarity` is the CLIP score of a picture."""

  def __init__(self, folder: str | Path):
    self.torch = torch_of()
    self.device = "cuda" if self.torch.cuda.is_available() else "cpu"
    self.net = from_folder("CLIPModel", folder).to(self.device).eval()
    self.words = from_folder("CLIPTokenizerFast", folder)
    self.pixels = from_folder("CLIPImageProcessor", folder)
    self._colours: dict[str, Any] = {}

  def paint(self, image: Image.Image, name: str, things: Sequence[Thing]) -> list[str]:
    """The colour of each object of a class, on its crop with what is not the object greyed."""
    if name not in self._colours:
      rows = []
      for colour in COLOURS:
        texts = self._texts([t.format(colour=colour, name=name) for t in TEMPLATES])
        rows.append(unit(texts.mean(0)))
      self._colours[name] = self.torch.stack(rows)  # [colour d]
    image = image.convert("RGB")
    blank, crops = Image.new("RGB", image.size, GREY), []
    for thing in things:
      x0, y0, x1, y1 = map(int, thing.box)
      shape = None if thing.mask is None else Image.fromarray(thing.mask)
      alone = image if shape is None else Image.composite(image, blank, shape)
      crops.append(alone.crop((x0, y0, x1, y1)))
    closest = (self._images(crops) @ self._colours[name].T).argmax(-1)
    return [COLOURS[i] for i in closest.tolist()]

  def similarity(self, image: Image.Image, text: str) -> float:
    """100 x cosine of a picture and a text, and 0 below 0 (arXiv 2104.08718)."""
    return self.similarities([image], [text])[0]

  def similarities(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
    """`similarity` of each pair."""
    seen = self._images([image.convert("RGB") for image in images])
    both = (seen * self._texts(list(texts))).sum(-1)
    return [max(100 * value, 0.0) for value in both.tolist()]

  def _texts(self, texts: list[str]):
    asked = self.words(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)
    with self.torch.no_grad():
      out = self.net.text_model(**asked).pooler_output
      return unit(self.net.text_projection(out))

  def _images(self, images: list[Image.Image]):
    pixels = self.pixels(images=images, return_tensors="pt")["pixel_values"].to(self.device)
    with self.torch.no_grad():
      out = self.net.vision_model(pixel_values=pixels).pooler_output
      return unit(self.net.visual_projection(out))


def unit(x):
  return x / x.norm(dim=-1, keepdim=True)
