"""Janus, which reads pixels: packed rows, gradients, and the same in PyTorch."""

import itertools
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
import transformers

from tarjax.convert.qwen2 import from_torch
from tarjax.convert.siglip2 import import_siglip2
from tarjax.data.packing import fill_row
from tarjax.models.janus import insert
from tarjax.representations import make_representation
from tarjax.tasks import make_task
from tests import golden
from tests.tiny_representations import MODEL, TEXT, config_of

MARKS = SimpleNamespace(place=320, image0=320)


def test_vectors_go_to_their_places():
  rng = np.random.default_rng(0)
  embeds, vectors = rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 4, 3))
  places = np.array([[0, 1, 2, 0, 3, 4], [0, 0, 0, 0, 0, 0]])
  want = embeds.copy()
  for b, l in zip(*np.nonzero(places), strict=True):
    want[b, l] = vectors[b, places[b, l] - 1]
  np.testing.assert_allclose(insert(*map(jax.numpy.asarray, (embeds, places, vectors))), want)


@pytest.fixture(scope="module")
def janus():
  """(task, params, frozen, jitted loss) with random values."""
  task = make_task(config_of("janus"))
  rng = np.random.default_rng(0)

  def values(init):
    shapes = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)

  params, frozen = values(task.init), values(task.init_frozen)
  assert set(frozen) == {"siglip2"} and params["projector"]["fc2"]["kernel"].shape == (24, 24)
  return task, params, frozen, jax.jit(lambda p, row: task.loss(p, frozen, row, None, train=True))


def example(rng, layout, length, pictures):
  """Tokens, labels and the pictures that stand in the middle of an example."""
  ids = rng.integers(0, TEXT - 30, length).astype(np.int32)
  ids[5 : 5 + 9 * pictures] = 320
  labels = np.where((rng.random(length) < 0.6) & (ids != 320), ids, -100).astype(np.int32)
  return ids, labels, list(rng.integers(0, 256, (pictures, 12, 12, 3), np.uint8))


def row_of(layout, examples):
  row = fill_row([part[:2] for part in examples], 96, 0)
  row |= layout.carried(row["tokens"], MARKS, [p for part in examples for p in part[2]])
  return {k: v[None] for k, v in row.items()}


def test_a_packed_row_with_pictures_is_the_sum_of_its_examples(janus):
  task, params, _, loss = janus
  layout, rng = task.representation.layout, np.random.default_rng(1)
  parts = [example(rng, layout, n, k) for n, k in ((20, 1), (17, 0), (30, 2))]

  def total(examples):
    value, metrics = loss(params, row_of(layout, examples))
    return float(value) * float(metrics["counts"]["loss"])

  alone = [total([part]) for part in parts]
  np.testing.assert_allclose(total(parts), sum(alone), rtol=1e-5)
  np.testing.assert_allclose(total(parts[::-1]), sum(alone), rtol=1e-5)
  # other pixels in one example change its own loss and nobody else's
  other = [*parts[:2], (*parts[2][:2], [255 - p for p in parts[2][2]])]
  changed = total(other)
  assert abs(changed - sum(alone)) > 1e-3
  np.testing.assert_allclose(changed - total(other[2:]), sum(alone[:2]), rtol=1e-4)


def test_what_is_trained(janus):
  """The projector and the language model get gradients; SigLIP2 is no parameter."""
  task, params, frozen, _ = janus
  row = row_of(task.representation.layout, [example(np.random.default_rng(2), None, 30, 1)])
  grads = jax.jit(jax.grad(lambda p: task.loss(p, frozen, row, None, train=True)[0]))(params)
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["projector"]))
  assert "siglip2" not in params and np.abs(grads["blocks"]["mlp"]["up"]["kernel"]).max() > 0
  task = make_task(config_of("janus", pre_align=True, optim={"weight_decay": 0.0}))
  grads = jax.jit(jax.grad(lambda p: task.loss(p, frozen, row, None, train=True)[0]))(params)
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["projector"]))
  assert not any(np.abs(g).max() for g in jax.tree.leaves(grads["blocks"]))


def test_it_reads_as_a_direct_computation_in_pytorch():
  """transformers' SigLIP and Qwen2 with inputs_embeds, and an MLP of torch between them."""
  torch.manual_seed(0)
  sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
  sizes |= {"intermediate_size": 24, "image_size": 12, "patch_size": 4}
  vision = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes)).eval()
  mlp = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.GELU(), torch.nn.Linear(24, 24))
  net = {"vocab_size": 336, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
  net |= {"num_key_value_heads": 1, "intermediate_size": 32, "tie_word_embeddings": True}
  llm = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**net, rope_theta=1e6)).eval()
  for parameter in itertools.chain(*(m.parameters() for m in (vision, mlp, llm))):
    parameter.data += 0.2 * torch.randn_like(parameter)
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 300, (2, 40))
  ids[0, 3:12] = ids[0, 14:23] = ids[1, 20:29] = 320
  pixels = rng.integers(0, 256, (3, 12, 12, 3), np.uint8)

  given = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
  with torch.no_grad():
    read = mlp(vision(given, output_hidden_states=True).hidden_states[-2])
    embeds = llm.get_input_embeddings()(torch.from_numpy(ids))
    embeds[torch.from_numpy(ids == 320)] = read.reshape(-1, 24)
    want = llm(inputs_embeds=embeds).logits.numpy()

  model = MODEL | dict(heads=3, kv_heads=1)
  representation = make_representation(config_of("janus", model=model), {})
  task = make_task(config_of("janus", model=model))
  tensors = {k: v.numpy() for k, v in vision.state_dict().items()}
  tower = import_siglip2(vision.config.to_dict(), tensors)
  tower = {k: tower[k] for k in ("patch", "position", "blocks")}
  tower["blocks"] = jax.tree.map(lambda x: x[:2], tower["blocks"])
  linear = lambda m: {"kernel": m.weight.detach().numpy().T, "bias": m.bias.detach().numpy()}  # noqa: E731
  params = from_torch(task.net, {k: v.numpy() for k, v in llm.state_dict().items()})
  params = dict(params, projector={"fc1": linear(mlp[0]), "fc2": linear(mlp[2])})
  layout = representation.layout
  rows = [
    {"tokens": row.astype(np.int32)} | layout.carried(row, MARKS, list(pixels[part]))
    for row, part in zip(ids, (slice(0, 2), slice(2, 3)), strict=True)
  ]
  batch = {k: np.stack([row[k] for row in rows]) for k in rows[0]}

  @jax.jit
  def logits(params, batch):
    inputs = representation.inputs(task.model, {"mllm": params, "siglip2": tower}, batch)
    hidden, _ = task.model.apply({"params": params}, **inputs)
    return task.model.apply({"params": params}, hidden, method="logits")

  golden.close(logits(params, batch), want, 1e-4)
