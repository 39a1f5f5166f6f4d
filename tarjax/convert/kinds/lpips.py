"""LPIPS of VGG16, from the two files that its original loads, or from one with both:

  python -m tarjax.convert import vgg16-397923af.pth vgg.pth --to runs/tar/lpips

The first is torchvision's VGG16 (download.pytorch.org/models), of which the classifier is left
behind. The second holds the weights of the channels, version 0.1: lpips/weights/v0.1/vgg.pth of
richzhang/PerceptualSimilarity, which taming-transformers and LlamaGen download as "vgg_lpips". One
file is the state dict of a whole `lpips.LPIPS(net="vgg")`, which names the network `net.slice1` on.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tarjax.convert.kinds import Found, tensor
from tarjax.convert.plan import Table
from tarjax.convert.rules import ConversionError, Fn, Rule, conv, flatten
from tarjax.convert.tensors import Source
from tarjax.models.lpips import DEPTHS, SCALE, SHIFT, Lpips, LpipsConfig

TASK, FORMAT, FILE = "lpips", "torch", "lpips_vgg.pth"
PARTS = (("VGG16", r"vgg/.*"), ("weights of the channels", r"weight\d"))
WHAT = "an LPIPS"
BOTH = "give both files, VGG16's and that of the channels: import vgg16-397923af.pth vgg.pth"
SCALING = {"scaling_layer.shift": SHIFT, "scaling_layer.scale": SCALE}
LEFT = r"classifier\.\d\.(weight|bias)|lins\.\d\.model\.1\.weight|scaling_layer\.(shift|scale)"

channels = Fn(lambda w: w[0, :, 0, 0], lambda w: w[None, :, None, None])  # [1 c 1 1] <-> [c]


def layers() -> list[tuple[int, int, int]]:
  """(stage, convolution, its number among the layers of torchvision's VGG16)."""
  found, number = [], 0
  for stage, depth in enumerate(DEPTHS):
    found += [(stage, i, number + 2 * i) for i in range(depth)]
    number += 2 * depth + 1  # each has a ReLU, and the stage a pool
  return found


def prefix(whole: bool, stage: int) -> str:
  """What stands before a layer's number."""
  return f"net.slice{stage + 1}." if whole else "features."


def recognise(source: Source, given: Mapping[str, Any]) -> Found | None:
  names = source.tensors.keys()
  whole, last = "net.slice5.28.weight" in names, "features.28.weight" in names
  if not (whole or last or "lin0.model.1.weight" in names):
    return None
  if not (whole or last):
    raise ConversionError(f"{source.name} holds LPIPS's weights of the channels; {BOTH}")
  if "lin0.model.1.weight" not in names:
    raise ConversionError(f"{source.name} holds VGG16 alone; {BOTH}")
  widths = [
    tensor(source, f"{prefix(whole, stage)}{number}.weight", WHAT, 4).shape[0]
    for stage, i, number in layers()
    if i == 0
  ]
  run, layout = {"task": TASK, "model": {"widths": widths}}, {"whole": whole}
  return Found("lpips", run, table(run, layout), layout)


def check(source: Source, found: Found) -> None:
  """The constants that pictures are scaled by are not stored; they must be the usual ones."""
  for name, want in SCALING.items():
    if name in source.tensors:
      value = np.asarray(source.tensors[name].read(), np.float32).reshape(-1)
      if value.shape != (3,) or not np.allclose(value, want):
        raise ConversionError(f"{source.path}: {name} is {value.tolist()}, and LPIPS has {want}")


def lpips_rules(whole: bool) -> list[Rule]:
  """`whole` names the network as the state dict of a whole LPIPS does."""
  rules = [Rule(r"lin(0|1|2|3|4)\.model\.1\.weight", "weight{1}", channels)]
  for stage, i, number in layers():
    name = (prefix(whole, stage) + str(number)).replace(".", r"\.")
    target = f"vgg/stage{stage}_conv{i}"
    rules += [
      Rule(rf"{name}\.weight", f"{target}/kernel", conv),
      Rule(rf"{name}\.bias", f"{target}/bias"),
    ]
  return rules


def table(config: Mapping[str, Any], layout: Mapping[str, Any]) -> Table:
  model = Lpips(LpipsConfig(**config["model"]))
  x = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  boxed = jax.eval_shape(model.init, jax.random.key(0), x, x)["params"]
  shapes = {name: leaf.shape for name, leaf in flatten(nn.meta.unbox(boxed)).items()}
  return Table(lpips_rules(bool(layout.get("whole"))), shapes, left=LEFT)


def around(config: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
  return {}
