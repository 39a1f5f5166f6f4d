"""LPIPS on VGG16 and the PatchGAN discriminator, built of torch's layers, with random weights."""

import numpy as np
import torch
from torch import nn

from tarjax.convert.kinds.lpips import lpips_rules
from tarjax.convert.rules import conv, to_params

POOLED = (4, 9, 16, 23)  # first layers of VGG16's stages, which are pools


class TorchLpips(nn.Module):
  """(a, b) float[b 3 y x] -> float[b], as the original's "vgg"; names of its parameters too."""

  def __init__(self, widths):
    super().__init__()
    layers, before = [], 3
    for width, depth in zip(widths, (2, 2, 3, 3, 3), strict=True):
      layers += [nn.MaxPool2d(2)] if layers else []
      for _ in range(depth):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = width
    self.features = nn.Sequential(*layers)
    for i, width in enumerate(widths):
      lin = nn.Module()
      lin.model = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))
      self.add_module(f"lin{i}", lin)
    self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
    self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

  def maps(self, x):
    x = (x - self.shift) / self.scale
    found = []
    for i, layer in enumerate(self.features):
      if i in POOLED:
        found.append(x)
      x = layer(x)
    return [y / (y.square().sum(1, keepdim=True).sqrt() + 1e-10) for y in (*found, x)]

  def forward(self, a, b):
    pairs = zip(self.maps(a), self.maps(b), strict=True)
    lins = [getattr(self, f"lin{i}").model for i in range(5)]
    parts = [lin((x - y).square()).mean((1, 2, 3)) for lin, (x, y) in zip(lins, pairs, strict=True)]
    return sum(parts)


def make_lpips(widths, seed=0):
  """Weights that keep the features of every stage alive."""
  torch.manual_seed(seed)
  made = TorchLpips(widths)
  for name, p in made.named_parameters():
    p.data = p.data.abs() if name.startswith("lin") else p.data * (2 if p.ndim > 1 else 1)
  return made


def lpips_files(made):
  """(VGG16's state dict, that of the channels), as they are published apart."""
  sd = {k: v.detach() for k, v in made.state_dict().items()}
  parts = [{k: v for k, v in sd.items() if k.startswith(p)} for p in ("features", "lin")]
  return parts[0] | {"classifier.6.bias": torch.zeros(10)}, parts[1]


def lpips_params(made):
  tensors = {k: v.detach().numpy() for k, v in made.named_parameters()}
  return to_params(lpips_rules(False), tensors)


def make_patchgan(channels, layers, seed=0):
  """A Sequential in training mode: float[b 3 y x] -> float[b 1 y' x']."""
  torch.manual_seed(seed)
  parts, before = [], 3
  for i in range(layers + 1):
    width = channels * min(2**i, 8)
    parts += [nn.Conv2d(before, width, 4, 2 if i < layers else 1, 1, bias=i == 0)]
    parts += [nn.BatchNorm2d(width)] if i else []
    parts += [nn.LeakyReLU(0.2)]
    before = width
  last = nn.Conv2d(before, 1, 4, 1, 1)
  last.weight.data *= 8  # or no logit would be beyond the hinges at 1 and -1
  made = nn.Sequential(*parts, last)
  for layer in made:
    if isinstance(layer, nn.BatchNorm2d):
      nn.init.normal_(layer.weight, 1, 0.2)
      nn.init.normal_(layer.bias, 0, 0.2)
  return made


def patchgan_params(made, of=lambda p: p):
  """What `of` gives of each parameter, as ours are named and laid out."""
  found, convs = {}, [x for x in made if isinstance(x, nn.Conv2d)]
  norms = [x for x in made if isinstance(x, nn.BatchNorm2d)]
  array = lambda p: of(p).detach().numpy().copy()  # noqa: E731
  for i, layer in enumerate(convs):
    part = {"kernel": np.ascontiguousarray(conv.there(array(layer.weight)))}
    part |= {"bias": array(layer.bias)} if layer.bias is not None else {}
    found["conv_out" if layer is convs[-1] else f"conv{i}"] = part
  for i, layer in enumerate(norms, 1):
    found[f"norm{i}"] = {"scale": array(layer.weight), "bias": array(layer.bias)}
  return found
