"""Inception's public weights: TensorFlow's classify_image_graph_def.pb, or the .pth made from it.

The .pth is pytorch-fid's and torch-fidelity's (pt_inception-2015-12-05-6726825d.pth). Its names are
`Mixed_5b.branch5x5_1.conv.weight`; the graph's are `mixed/tower/conv/conv2d_params`.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tarjax.config import UserError
from tarjax.convert.rules import ConversionError
from tarjax.convert.tensors import KINDS, open_source
from tarjax.evals.inception import BLOCKS, STEM, steps

EPSILON = 1e-3  # of the batch norms
NORM = {  # PyTorch's names, and the graph's
  "weight": "gamma",
  "bias": "beta",
  "running_mean": "moving_mean",
  "running_var": "moving_variance",
}

Readers = Mapping[str, Callable[[], np.ndarray]]


def load(path: str | Path) -> dict[str, Any]:
  """Parameters of `inception.Inception`, from either file.

  Raises:
    UserError: no such file, one of another kind, or one that lacks a tensor or has another shape.
  """
  path = Path(path)
  if not path.is_file():
    raise UserError(f"Inception's weights {path} do not exist")
  if path.suffix not in KINDS:
    return _params(path, _constants(path), graph_name, "softmax/weights", False)
  try:
    read = {name: tensor.read for name, tensor in open_source(path).tensors.items()}
  except ConversionError as e:
    raise UserError(str(e)) from e
  return _params(path, read, lambda step, part: f"{step}.{part}", "fc.weight", True)


def _params(path: Path, read: Readers, name: Callable, head: str, torch: bool) -> dict[str, Any]:
  """Folds each batch norm into its convolution: [ky kx c c'] and [c'].

  Args:
    read: name in the file -> its values.
    name: step and PyTorch's part of it -> name in the file.
    head: name of the last matrix.
    torch: outputs come first in the file's shapes.
  """

  def get(name: str) -> np.ndarray:
    if name not in read:
      raise UserError(f"{path} has no tensor {name!r}: it is not Inception-v3 of 2015")
    return np.asarray(read[name](), np.float64)

  tree: dict[str, Any] = {"fc": {"kernel": get(head).T if torch else get(head)}}
  for step in steps():
    kernel = get(name(step, "conv.weight"))
    kernel = kernel.transpose(2, 3, 1, 0) if torch else kernel
    gamma, beta, mean, var = (get(name(step, f"bn.{part}")) for part in NORM)
    scale = gamma / np.sqrt(var + EPSILON)
    if kernel.shape[-1:] != scale.shape:
      raise UserError(f"{path}: {step} has shapes {kernel.shape} and {scale.shape}")
    tree[step] = {"kernel": kernel * scale, "bias": beta - mean * scale}
  return {k: {n: x.astype(np.float32) for n, x in part.items()} for k, part in tree.items()}


def graph_name(step: str, part: str) -> str:
  """ "Mixed_5b.branch5x5_2", "bn.bias" -> "mixed/tower/conv_1/batchnorm/beta"."""
  kind, leaf = part.split(".")
  end = "conv2d_params" if kind == "conv" else f"batchnorm/{NORM[leaf]}"
  block, _, branch = step.partition(".")
  if not branch:
    return f"{numbered('conv', [s.name for s in STEM].index(step))}/{end}"
  return f"{numbered('mixed', list(BLOCKS).index(block))}/{place(block, branch)}/{end}"


def place(block: str, branch: str) -> str:
  """Where a convolution stands in its block of the graph."""
  base, _, number = branch.partition("_")
  if not number:
    return "conv"
  if number == "pool":
    return "tower_2/conv"
  last = ("branch7x7dbl", "branch7x7x3") + ("branch3x3dbl",) * (block != "Mixed_6a")
  tower = "tower_1" if base in last else "tower"
  if number[1:]:
    return f"{tower}/mixed/{numbered('conv', 'ab'.index(number[1]))}"
  return f"{tower}/{numbered('conv', int(number) - 1)}"


def numbered(name: str, number: int) -> str:
  """TensorFlow's n-th of a name: conv, conv_1, conv_2."""
  return f"{name}_{number}" if number else name


def _constants(path: Path) -> Readers:
  """The constants of a frozen TensorFlow graph."""
  from google.protobuf.message import DecodeError

  graph_pb2: Any = importlib.import_module("tensorboardX.proto.graph_pb2")

  try:
    graph: Any = graph_pb2.GraphDef.FromString(path.read_bytes())
  except DecodeError as e:
    raise UserError(f"{path} is neither a TensorFlow graph nor like *{' *'.join(KINDS)}") from e

  def reader(tensor: Any) -> Callable[[], np.ndarray]:
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_content:
      return lambda: np.frombuffer(tensor.tensor_content, np.float32).reshape(shape)
    return lambda: np.broadcast_to(np.array(tensor.float_val, np.float32), shape)

  nodes = [node for node in graph.node if node.op == "Const"]
  return {n.name: reader(n.attr["value"].tensor) for n in nodes}
