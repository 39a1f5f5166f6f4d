"""The PyTorch side of `bench --against=torch`: the same network, weights and data as ours.

As fast as transformers' own classes go: scaled_dot_product_attention without a mask, a fused
optimizer, nothing computed twice, and on a GPU torch.compile of the whole network. Products are
bfloat16 by autocast where ours are; weights and optimizer are float32.
"""

import os
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from tarjax.config import UserError
from tarjax.convert.qwen2 import hf_config, to_torch
from tarjax.convert.rules import to_state_dict
from tarjax.convert.ta_tok import ta_tok_rules
from tarjax.models.ta_tok import TaTokConfig
from tarjax.tasks.ta_tok import merge
from tarjax.timing import Side


def make(stage: Any, params, frozen, batch, parts: int, cuda: bool) -> Side:
  """The side of a stage, from its weights and batch as numpy arrays.

  Raises:
    UserError: a GPU that this torch does not see.
  """
  if cuda and not torch.cuda.is_available():
    raise UserError("--against=torch: JAX has a GPU, and this torch has none")
  if not cuda:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
  device = "cuda" if cuda else "cpu"
  on_device = {name: torch.from_numpy(np.array(x)).to(device) for name, x in batch.items()}
  if stage.config.task == "mllm":
    return training_step(stage, params, on_device["tokens"], parts)
  return encode(stage, merge(params, frozen), on_device["image"])


def training_step(stage: Any, params, tokens: torch.Tensor, parts: int) -> Side:
  """Forward, backward, clipping and AdamW of Qwen2ForCausalLM on int64[b l]."""
  config, net = stage.config.optim, stage.task.net
  tokens = tokens.long()
  sizes: Any = dict(hf_config(net), attn_implementation="sdpa")
  with tokens.device:
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes))
  load(model, to_torch(net, params), {"lm_head.weight"} if net.tied else set())
  weights = dict(model.named_parameters())
  decayed = [w for name, w in weights.items() if w.ndim > 1 and "embed" not in name]
  others = [w for name, w in weights.items() if w.ndim == 1 or "embed" in name]
  groups = [
    {"params": decayed, "weight_decay": config.weight_decay},
    {"params": others, "weight_decay": 0.0},
  ]
  make: Any = {"lr": config.lr, "betas": (config.b1, config.b2), "eps": config.eps}
  optimizer = torch.optim.AdamW(groups, fused=True, **make)
  forward = compiled(model, tokens)
  mixed = autocast(net.dtype, tokens)

  def step() -> torch.Tensor:
    total = torch.zeros((), device=tokens.device)
    for part in tokens.chunk(parts):
      with mixed:
        loss = forward(input_ids=part, labels=part, use_cache=False).loss / parts
      loss.backward()
      total += loss.detach()
    if config.clip:
      nn.utils.clip_grad_norm_(weights.values(), config.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total

  def run(times: int) -> None:
    for _ in range(times):
      step()
    wait(tokens)

  what = f"training step, remat none, in {parts} part{'s' * (parts > 1)}"
  return side(what, tokens, run, loss=step().item())


class Encoder(nn.Module):
  """TA-Tok up to its codes: uint8[b y x 3] -> int64[b l]."""

  table: torch.Tensor
  norm: torch.Tensor

  def __init__(self, net: TaTokConfig):
    super().__init__()
    c = net.encoder
    sizes: Any = dict(
      hidden_size=c.width,
      intermediate_size=c.mlp,
      num_hidden_layers=net.blocks,
      num_attention_heads=c.heads,
      image_size=c.image,
      patch_size=c.patch,
      layer_norm_eps=c.eps,
      vision_use_head=False,
      attn_implementation="sdpa",
    )
    tower: Any = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes))
    self.encoder = getattr(tower, "vision_model", tower)  # transformers 5 has one level less
    self.encode_task_layer = nn.Sequential(nn.Linear(c.width, c.width), nn.Tanh())
    self.bottleneck = nn.ModuleDict({"in_linear": nn.Linear(c.width, net.width)})
    self.register_buffer("table", torch.zeros(net.codes, net.width), persistent=False)
    self.register_buffer("norm", torch.zeros(net.codes), persistent=False)

  def forward(self, image: torch.Tensor) -> torch.Tensor:
    x = self.encoder.embeddings(image.permute(0, 3, 1, 2).float() / 127.5 - 1)
    x = self.encoder.encoder(inputs_embeds=x).last_hidden_state
    z = self.bottleneck["in_linear"](self.encode_task_layer(x)).float()
    with torch.autocast(image.device.type, enabled=False):  # as exact as ours
      near = [torch.addmm(self.norm, one, self.table.T, alpha=-2).argmin(-1) for one in z]
    return torch.stack(near)


def encode(stage: Any, params, image: torch.Tensor) -> Side:
  """Encoding of uint8[b y x 3]; the codebook is at hand."""
  net = stage.task.net
  with image.device:
    model = Encoder(net).eval()
  used = {name: params[name] for name in ("encoder", "encode_task", "in_linear")}
  unread = {f"encoder.post_layernorm.{name}" for name in ("weight", "bias")}
  load(model, to_state_dict(ta_tok_rules(net), used), unread)
  proj, rows = params["quantizer"]["proj"], params["quantizer"]["embedding"]
  table = rows @ proj["kernel"] + proj["bias"]
  if net.l2_normalized:
    table /= np.linalg.norm(table, axis=-1, keepdims=True)
  model.table.copy_(torch.from_numpy(table))
  model.norm.copy_(model.table.square().sum(-1))
  forward = compiled(model, image)
  mixed = autocast(net.dtype, image)

  @torch.no_grad()
  def run(times: int) -> Any:
    for _ in range(times):
      with mixed:
        codes = forward(image)
    wait(image)
    return codes

  return side("encoding to codes at scale 1", image, run, codes=run(1).cpu().numpy())


def load(model: nn.Module, tensors: dict[str, np.ndarray], unread: set[str]) -> None:
  """Fills all parameters but those that nothing reads."""
  state = {name: torch.from_numpy(np.array(x, np.float32)) for name, x in tensors.items()}
  missing, unexpected = model.load_state_dict(state, strict=False)
  if unexpected or set(missing) - unread:
    raise RuntimeError(f"weights do not fit transformers: {missing} missing, {unexpected} left")


def compiled(model: nn.Module, like: torch.Tensor) -> Any:
  return torch.compile(model) if like.is_cuda else model


def autocast(dtype: str, like: torch.Tensor) -> Any:
  return torch.autocast(like.device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def wait(like: torch.Tensor) -> None:
  if like.is_cuda:
    torch.cuda.synchronize()


def side(what: str, like: torch.Tensor, run: Any, **first) -> Side:
  def peak() -> int | None:
    return torch.cuda.max_memory_allocated() if like.is_cuda else None

  how = "torch.compile" if like.is_cuda else f"{torch.get_num_threads()} threads"
  return Side("torch", f"{what}, {how}, torch {torch.__version__}", run, peak, **first)
