"""LlamaGen against a transcription of its formulas in PyTorch, its files, and cached sampling."""

import json

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tarjax import checkpoint
from tarjax.convert import __main__ as convert
from tarjax.models.ar_dtok import ArDtok, ArDtokConfig
from tarjax.sampling import generate_codes

WIDTH, DEPTH, HEADS, MLP, VOCAB, CLASSES, SIDE = 32, 2, 2, 48, 24, 5, 3
LENGTH = SIDE**2


def weights(seed=0):
  """A state dict with the original's names and shapes."""
  shapes = {
    "cls_embedding.embedding_table.weight": (CLASSES + 1, WIDTH),
    "tok_embeddings.weight": (VOCAB, WIDTH),
    "norm.weight": (WIDTH,),
    "output.weight": (VOCAB, WIDTH),
  }
  for i in range(DEPTH):
    layer = {
      "attention.wqkv.weight": (3 * WIDTH, WIDTH),
      "attention.wo.weight": (WIDTH, WIDTH),
      "feed_forward.w1.weight": (MLP, WIDTH),
      "feed_forward.w3.weight": (MLP, WIDTH),
      "feed_forward.w2.weight": (WIDTH, MLP),
      "attention_norm.weight": (WIDTH,),
      "ffn_norm.weight": (WIDTH,),
    }
    shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
  generator = torch.Generator().manual_seed(seed)
  return {k: 0.3 * torch.randn(s, generator=generator) for k, s in shapes.items()}


def turned(x, places):
  """Rotary positions on pairs of neighbours, x [b h l k]: half of the pairs by row, half by column.

  `places` has (row, column) per position, None for the class, which becomes zeros.
  """
  out, quarter = torch.zeros_like(x), x.shape[-1] // 4
  for at, place in enumerate(places):
    for pair in range(2 * quarter if place else 0):
      angle = torch.tensor(float(place[pair // quarter]) * 10_000 ** (-(pair % quarter) / quarter))
      one, two = x[..., at, 2 * pair], x[..., at, 2 * pair + 1]
      out[..., at, 2 * pair] = one * angle.cos() - two * angle.sin()
      out[..., at, 2 * pair + 1] = two * angle.cos() + one * angle.sin()
  return out


def original(sd, labels, codes):
  """Logits [b l v] of a class and the codes before each."""

  def norm(x, name):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * sd[f"{name}.weight"]

  x = torch.cat([sd["cls_embedding.embedding_table.weight"][labels][:, None],
                 sd["tok_embeddings.weight"][codes[:, :-1]]], 1)  # fmt: skip
  b, l, _ = x.shape
  places = [None, *((i // SIDE, i % SIDE) for i in range(LENGTH))][:l]
  for i in range(DEPTH):
    layer = f"layers.{i}"
    y = norm(x, f"{layer}.attention_norm") @ sd[f"{layer}.attention.wqkv.weight"].T
    q, k, v = (part.view(b, l, HEADS, -1).transpose(1, 2) for part in y.chunk(3, -1))
    y = F.scaled_dot_product_attention(turned(q, places), turned(k, places), v, is_causal=True)
    x = x + y.transpose(1, 2).reshape(b, l, -1) @ sd[f"{layer}.attention.wo.weight"].T
    y = norm(x, f"{layer}.ffn_norm")
    ff = {n: sd[f"{layer}.feed_forward.w{n}.weight"].T for n in (1, 2, 3)}
    x = x + (F.silu(y @ ff[1]) * (y @ ff[3])) @ ff[2]
  return norm(x, "norm") @ sd["output.weight"].T


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(folder of the import, state dict)."""
  home = tmp_path_factory.mktemp("llamagen")
  sd = weights()
  torch.save({"model": sd}, home / "c2i_tiny.pt")
  (home / "sizes.json").write_text(json.dumps({"n_head": HEADS, "block_size": LENGTH}))
  argv = ["import", home / "c2i_tiny.pt", "--to", home / "run", "--config", home / "sizes.json"]
  assert convert.main([str(a) for a in argv]) == 0
  return home / "run", sd


@pytest.fixture(scope="module")
def model(run):
  config = checkpoint.read_config(run[0])
  assert config.task == "llamagen" and config.model.rotary and config.model.cond_vocab == CLASSES
  return ArDtok(ArDtokConfig(**config.model)), checkpoint.load(str(run[0]))


def test_the_import_computes_what_the_original_does(run, model):
  rng = np.random.default_rng(0)
  labels, codes = rng.integers(0, CLASSES + 1, 3), rng.integers(0, VOCAB, (3, LENGTH))
  want = original(run[1], torch.tensor(labels), torch.tensor(codes)).numpy()
  net, params = model
  got = jax.jit(net.apply)({"params": params}, labels.astype(np.int32), codes.astype(np.int32))
  np.testing.assert_allclose(got, want, atol=1e-4)
  assert np.abs(want).max() > 1


def test_the_export_is_the_file(run, tmp_path):
  assert convert.main(["export", str(run[0]), "--to", str(tmp_path / "out")]) == 0
  (file,) = (tmp_path / "out").glob("*.pt")
  again = torch.load(file, weights_only=True)["model"]
  assert again.keys() == run[1].keys()
  for name, tensor in run[1].items():
    assert torch.equal(again[name], tensor), name


def test_greedy_codes_with_guidance(run, model):
  """Code by code, each from the guided logits of the whole sequence so far."""
  labels = np.array([0, 3], np.int32)
  seeds = np.zeros(2, np.uint32)
  got = generate_codes(*model, labels, seeds, guidance_scale=1.75, temperature=0.0)
  codes, null = torch.zeros(2, LENGTH, dtype=torch.long), torch.full((2,), CLASSES)
  for t in range(LENGTH):
    cond, uncond = (original(run[1], c, codes)[:, t] for c in (torch.tensor(labels), null))
    codes[:, t] = (uncond + 1.75 * (cond - uncond)).argmax(-1)
  np.testing.assert_array_equal(got, codes.numpy())


def test_a_name_says_how_many_codes_there_are(tmp_path, capsys):
  for name, code in (("c2i_XL_384.pt", 0), ("c2i.pt", 2)):
    torch.save(weights(), tmp_path / name)
    assert (
      convert.main(["import", str(tmp_path / name), "--to", str(tmp_path / f"{name}.d")]) == code
    )
  assert checkpoint.read_config(tmp_path / "c2i_XL_384.pt.d").model.length == 576
  assert '{"block_size": 576}' in capsys.readouterr().err


def test_rotary_positions_need_a_square():
  with pytest.raises(ValueError, match="length=8 is no square"):
    ArDtokConfig(rotary=True, length=8)
