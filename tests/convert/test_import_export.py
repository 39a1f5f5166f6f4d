"""`convert import` and `export`: every kind, every dtype, bit for bit, and loadable both sides."""

import dataclasses
import hashlib
import json

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
import transformers
from ml_collections import ConfigDict
from safetensors.torch import load_file, save_file

from tarjax import checkpoint, saving
from tarjax.convert import ar_dtok, formats, importing, qwen2, store, vqvae
from tarjax.convert.inspecting import table_of
from tarjax.convert.kinds import load_kind
from tarjax.convert.plan import Array
from tarjax.convert.rules import flatten
from tarjax.convert.ta_tok import ta_tok_config
from tarjax.state import TrainState
from tarjax.tasks import make_task
from tests import golden
from tests.convert import checkpoints as make

# fmt: off
FILES = {
    "ta_tok": make.ta_tok, "vqvae": make.vqvae, "ar_dtok": make.ar_dtok,
    "ar_fixed": lambda f, d: make.ar_dtok(f, d, "ar_clip_fixed_pe"),
    "ar_gqa": lambda f, d: make.ar_dtok(f, d, "ar_clip_gqa"),
    "ar_indices": lambda f, d: make.ar_dtok(f, d, "ar_indice"),
    "ar_class": lambda f, d: make.ar_dtok(f, d, "ar_class"),
    "ta_tok_stochastic": lambda f, d: make.ta_tok(f, d, "ta_tok_stochastic"),
}
FOLDERS = {
    "tied": lambda f, d: make.qwen2(f, d, tie_word_embeddings=True),
    "untied": lambda f, d: make.qwen2(f, d, shards="20KB", tie_word_embeddings=False),
    "siglip": make.siglip, "naflex": lambda f, d: make.naflex(f, d, "vision_model."),
    "vision": make.siglip_vision,
    "vision_old": lambda f, d: make.siglip_vision(f, d, "vision_model."),
}
# fmt: on


def pairs(kinds):
  """The first kind in every dtype, the others in one after the other."""
  first, *others = kinds
  dtypes = list(make.DTYPES)
  return [(first, d) for d in dtypes] + [(k, dtypes[i % 3]) for i, k in enumerate(others)]


@pytest.mark.parametrize("kind, dtype", pairs(FILES))
def test_pickles(kind, dtype, tmp_path):
  source, options = FILES[kind](tmp_path, dtype)
  _, out = make.there_and_back(source, tmp_path, *options)
  make.same(make.tensors_of(out), make.tensors_of(source))
  old, new = (torch.load(f, weights_only=True, mmap=True) for f in (source, out))
  for path in ((), ("model",)):
    for part in path:
      old, new = old[part], new[part]
    assert {k: v for k, v in old.items() if k in ("name", "args")} == {
      k: v for k, v in new.items() if k in ("name", "args")
    }


@pytest.mark.parametrize("kind, dtype", pairs(FOLDERS))
def test_folders(kind, dtype, tmp_path):
  source = FOLDERS[kind](tmp_path / "source", dtype)
  (source / "generation_config.json").write_text('{"top_k": 20}')
  run, out = make.there_and_back(source, tmp_path)
  make.same(make.tensors_of(out), make.tensors_of(source))
  for name in ("config.json", "generation_config.json"):
    assert (out / name).read_bytes() == (source / name).read_bytes()
  assert kind != "untied" or len(list(source.glob("*.safetensors"))) > 1
  assert checkpoint.read_config(run).task in ("mllm", "siglip2")


def test_a_header_may_begin_like_a_pickle(tmp_path):
  """The first bytes of a safetensors file are its header's length, which may be any."""
  source = make.qwen2(tmp_path / "source", "bfloat16")
  file, length = source / "model.safetensors", 0x10280  # 80 02 ..: also how a pickle begins
  data = file.read_bytes()
  stop = 8 + int.from_bytes(data[:8], "little")
  head = data[8:stop].ljust(length)
  file.write_bytes(length.to_bytes(8, "little") + head + data[stop:])
  _, out = make.there_and_back(source, tmp_path)
  make.same(make.tensors_of(out), make.tensors_of(source))


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_transformers_loads_a_language_model(kind, tmp_path, monkeypatch):
  monkeypatch.setattr("tarjax.convert.exporting.SHARD", 20_000)
  source = FOLDERS[kind](tmp_path / "source", "float32")
  _, out = make.there_and_back(source, tmp_path)
  assert len(list(out.glob("*.safetensors"))) > 2
  load = transformers.Qwen2ForCausalLM.from_pretrained
  model, info = load(out, output_loading_info=True)
  assert not any(info.values())
  ids = torch.arange(6)[None]
  torch.testing.assert_close(model(ids).logits, load(source)(ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
  "kind, cls",
  [
    ("siglip", "SiglipModel"),
    ("vision", "SiglipVisionModel"),
    ("vision_old", "SiglipVisionModel"),
    ("naflex", "Siglip2VisionModel"),
  ],
)
def test_transformers_loads_a_siglip(kind, cls, tmp_path):
  _, out = make.there_and_back(FOLDERS[kind](tmp_path / "source", "float32"), tmp_path)
  _, info = getattr(transformers, cls).from_pretrained(out, output_loading_info=True)
  assert not any(info.values())


def test_imports_are_what_the_converters_make(tmp_path):
  """`checkpoint.load` of an import equals the tree of the in-memory converter."""
  for name in ("vqvae", "ar_dtok"):
    (tmp_path / name).mkdir()
    source, options = FILES[name](tmp_path / name, "float32")
    run, _ = make.there_and_back(source, tmp_path / name, *options)
    config, found = checkpoint.read_config(run), make.tensors_of(source)
    module = {"vqvae": vqvae, "ar_dtok": ar_dtok}[name]
    cls = {"vqvae": vqvae.VqVaeConfig, "ar_dtok": ar_dtok.ArDtokConfig}[name]
    want = flatten(module.from_torch(cls(**config.model), found))
    make.same(flatten(checkpoint.load(str(run))), want)
  source = make.qwen2(tmp_path / "q", "bfloat16")
  run, _ = make.there_and_back(source, tmp_path)
  net = qwen2.Qwen2Config(**checkpoint.read_config(run).model)
  want = flatten(qwen2.from_torch(net, make.tensors_of(source)))
  make.same(flatten(checkpoint.load(str(run))), want)


@pytest.mark.parametrize("kind", ["tied", "siglip", "ta_tok", "vqvae"])
def test_training_starts_from_an_import(kind, tmp_path):
  """Names and shapes are those of the task, for params and, of TA-Tok, the frozen E."""
  if kind in FILES:
    source, options = FILES[kind](tmp_path, "float32")
  else:
    source, options = FOLDERS[kind](tmp_path / "source", "float32"), []
  assert make.run("import", source, "--to", tmp_path / "run", *options) == 0
  config = ConfigDict(checkpoint.read_config(tmp_path / "run").to_dict())
  task = make_task(config)
  key = jax.random.key(0)
  want = flatten(nn.meta.unbox(jax.eval_shape(task.init, key)))
  got = flatten(checkpoint.load(str(tmp_path / "run")))
  assert {n: a.shape for n, a in got.items()} == {n: a.shape for n, a in want.items()}
  if kind == "ta_tok":
    frozen = checkpoint.load_frozen(tmp_path / "run")
    shape = nn.meta.unbox(jax.eval_shape(task.init_frozen, key))["embedding"].shape
    assert frozen["embedding"].shape == shape
    filled = checkpoint.fill(got, {"": str(tmp_path / "run")}, [], checkpoint.load)
    assert flatten(filled).keys() == want.keys()


def test_orbax_restores_an_import_to_a_mesh(tmp_path):
  """Straight into shards, also where a stack of layers is in many chunks."""
  source = make.qwen2(tmp_path / "source", "bfloat16")
  store_chunk, store.CHUNK = store.CHUNK, 700
  try:
    run, out = make.there_and_back(source, tmp_path)
  finally:
    store.CHUNK = store_chunk
  make.same(make.tensors_of(out), make.tensors_of(source))
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  want = checkpoint.load(str(run))
  assert len(list((run / "checkpoints/0/params/blocks.mlp.up.kernel").glob("[0-9]*"))) > 6
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
  like = {"embed": {"embedding": jax.ShapeDtypeStruct((96, 32), "bfloat16", sharding=spread)}}
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    args = ocp.args.PyTreeRestore(
      item=like,
      restore_args=ocp.checkpoint_utils.construct_restore_args(like),
      partial_restore=True,
    )
    found = reader.restore(run / "checkpoints/0/params", args=args)["embed"]["embedding"]
  assert found.sharding == spread
  np.testing.assert_array_equal(np.asarray(found), want["embed"]["embedding"])


def test_what_is_no_weight_is_kept(tmp_path):
  """Integer buffers, another model's tensors, the copy of a tied table, a teacher."""
  source = make.qwen2(tmp_path / "source", "bfloat16", tie_word_embeddings=True)
  found = load_file(source / "model.safetensors")
  found["lm_head.weight"] = found["model.embed_tokens.weight"].clone()
  found["model.vision_tower.position_ids"] = torch.arange(9)[None]
  found["model.vision_tower.x.weight"] = torch.randn(3, 2, dtype=torch.float16)
  save_file(found, source / "model.safetensors", metadata={"format": "pt"})
  run, out = make.there_and_back(source, tmp_path)
  make.same(make.tensors_of(out), make.tensors_of(source))
  assert make.run("export", run, "--to", tmp_path / "lean", "--no-extra") == 0
  lean = make.tensors_of(tmp_path / "lean")
  assert lean.keys() == {n for n in found if "vision_tower" not in n and n != "lm_head.weight"}
  file, options = make.ta_tok(tmp_path)
  holds = torch.load(file, weights_only=True)
  holds["model"]["sd"]["teacher.x"] = torch.arange(4, dtype=torch.int16)
  torch.save(holds, file)
  assert make.run("import", file, "--to", tmp_path / "ta", *options) == 0
  assert make.run("export", tmp_path / "ta", "--to", tmp_path / "again.pth") == 0
  make.same(make.tensors_of(tmp_path / "again.pth"), make.tensors_of(file))
  assert "verbatim" not in flatten(checkpoint.load(str(tmp_path / "ta")))


@pytest.mark.parametrize("stacked", [True, False])
def test_big_vision(stacked, tmp_path):
  """The archive of the same model gives the same run as its Hugging Face folder."""
  source = make.siglip(tmp_path / "source")
  assert make.run("import", source, "--to", tmp_path / "hf") == 0
  want = checkpoint.load(str(tmp_path / "hf"))
  np.savez(tmp_path / "siglip.npz", **big_vision(want, stacked))
  assert make.run("import", tmp_path / "siglip.npz", "--to", tmp_path / "bv") == 0
  make.same(flatten(checkpoint.load(str(tmp_path / "bv"))), flatten(want))
  mine, theirs = (checkpoint.read_config(tmp_path / n).to_dict() for n in ("bv", "hf"))
  assert mine == theirs
  assert make.run("export", tmp_path / "bv", "--to", tmp_path / "out") == 0
  _, info = transformers.SiglipModel.from_pretrained(tmp_path / "out", output_loading_info=True)
  assert not any(info.values())
  make.same(make.tensors_of(tmp_path / "out"), make.tensors_of(source))


def big_vision(tree, stacked: bool) -> dict[str, np.ndarray]:
  """A run's tree under the names of the authors' archive."""
  attn = {"q": "query", "k": "key", "v": "value", "out": "out"}

  def block(t):
    out = {f"LayerNorm_{i}/{k}": v for i in (0, 1) for k, v in t[f"norm{i + 1}"].items()}
    out |= {
      f"MlpBlock_0/Dense_{i}/{k}": v for i in (0, 1) for k, v in t["mlp"][f"fc{i + 1}"].items()
    }
    mha = "MultiHeadDotProductAttention_0"
    return out | {f"{mha}/{attn[a]}/{k}": v for a in attn for k, v in t["attn"][a].items()}

  def blocks(prefix, t):
    for name, value in block(t).items():
      if stacked:
        flat[f"{prefix}encoderblock/{name}"] = value
      else:
        flat.update({f"{prefix}encoderblock_{i}/{name}": v for i, v in enumerate(value)})

  flat: dict[str, np.ndarray] = {}
  v, t, img, txt = tree["vision"], tree["text"], "params/img/", "params/txt/"
  flat |= {f"{img}embedding/{k}": x for k, x in v["patch"].items()}
  flat |= {img + "pos_embedding": v["position"][None], txt + "pos_embedding": t["position"][None]}
  blocks(img + "Transformer/", v["blocks"])
  blocks(txt + "Encoder_0/", t["blocks"])
  flat |= {f"{img}Transformer/encoder_norm/{k}": x for k, x in v["norm"].items()}
  flat |= {f"{txt}Encoder_0/encoder_norm/{k}": x for k, x in t["norm"].items()}
  head = block({"norm1": v["head"]["norm"], "norm2": {}} | v["head"])
  flat |= {f"{img}MAPHead_0/{k}": x for k, x in head.items()}
  flat |= {img + "MAPHead_0/probe": v["head"]["probe"]}
  flat |= {txt + "Embed_0/embedding": t["embed"]["embedding"]}
  flat |= {f"{txt}head/{k}": x for k, x in t["head"].items()}
  return flat | {"params/t": tree["logit_scale"][None], "params/b": tree["logit_bias"][None]}


def test_a_trained_run_is_exported(tmp_path):
  """What training saves, with frozen networks, and no layer that it never ran."""
  source, options = make.ta_tok(tmp_path)
  assert make.run("import", source, "--to", tmp_path / "run", *options) == 0
  params, frozen = checkpoint.load(str(tmp_path / "run")), checkpoint.load_frozen(tmp_path / "run")
  config = checkpoint.read_config(tmp_path / "run")
  trained = tmp_path / "trained"
  saver = saving.Saver(trained, keep=1)
  arrays = jax.tree.map(jax.numpy.asarray, params)
  saver.save(7, TrainState(7, arrays, {"m": arrays["in_linear"]}), {})
  saver.close()
  teacher = {"teacher": {"norm": jax.numpy.ones(3)}, "ta_tok": {"x": jax.numpy.ones(2)}}
  checkpoint.save_frozen(trained, jax.tree.map(jax.numpy.asarray, frozen) | teacher)
  (trained / "config.json").write_text(json.dumps({"config": config.to_dict()}))
  assert make.run("export", f"{trained}@7", "--to", tmp_path / "trained.pth") == 0
  got, want = make.tensors_of(tmp_path / "trained.pth"), make.tensors_of(source)
  assert got.keys() == want.keys()
  read = {n for n in want if got[n].tobytes() == want[n].tobytes()}
  zeros = ("encoder.encoder.layers.2.", "encoder.post", "encoder.head", "decoder.vision_model.head")
  assert all(n.startswith(zeros) for n in want.keys() - read)
  assert (got["scale_layer.shift"] == 0.5).all()
  args = torch.load(tmp_path / "trained.pth", weights_only=True)["model"]["args"]
  cfg = golden.load("ta_tok_l2true")[0]
  read_back = load_kind("ta_tok")
  assert read_back.around(config.to_dict(), {})["args"] == args
  assert args["bottleneck"]["args"]["bottleneck_dim"] == 24
  assert args["input_size"] == cfg["ta_tok_args"]["input_size"]


def test_inspect(tmp_path, capsys):
  source, options = make.ta_tok(tmp_path)
  assert make.run("import", source, "--to", tmp_path / "run", *options) == 0
  elements = sum(a.size for a in make.tensors_of(source).values())
  capsys.readouterr()
  for path, extra in ((tmp_path / "run", ()), (source, options)):
    assert make.run("inspect", path, *extra) == 0
    out = capsys.readouterr().out
    assert "other" not in out and "W, the projection" in out
    total = next(line for line in out.splitlines() if line.strip().startswith("total"))
    assert f"{elements:,}" in total and "float32" in total
  bundle = {"components": {"ta_tok": "run", "tokenizer": "tokenizer"}}
  (tmp_path / "bundle.json").write_text(json.dumps(bundle))
  assert make.run("inspect", tmp_path) == 0
  assert "tokenizer: " in capsys.readouterr().out
  record = json.loads((tmp_path / "run" / "provenance.json").read_text())
  digest = hashlib.sha256(source.read_bytes()).hexdigest()
  assert record["files"] == {"ta_tok.pth": digest} and record["kind"] == "ta_tok"


def test_provenance_of_shards(tmp_path):
  source = FOLDERS["untied"](tmp_path / "source", "bfloat16")
  assert make.run("import", source, "--to", tmp_path / "run") == 0
  record = json.loads((tmp_path / "run" / "provenance.json").read_text())
  for file in source.iterdir():
    assert record["files"][file.name] == hashlib.sha256(file.read_bytes()).hexdigest(), file


def test_the_release_has_the_published_counts():
  """Sizes of the full files, from shapes alone (SPEC of sizes, and the recorded state dicts)."""
  bottleneck = {"bottleneck_dim": 1536, "regularizer": {"name": "simvq"}}
  bottleneck["regularizer"]["args"] = {"codebook_size": 65536}
  model = ta_tok_config({"bottleneck": {"name": "bottleneck", "args": bottleneck}})
  table = load_kind("ta_tok").table({"model": dataclasses.asdict(model)}, {})
  arrays = {
    (table.home(n, None).tree, n): Array(s, np.dtype(np.float32), False)
    for n, s in table.shapes.items()
  }
  text = "\n".join(table_of("ta_tok", arrays))
  for count in (
    "412,987,248",
    "15,238,352",
    "39,267,072",
    "12,398,592",
    "3,984,768",
    "4,131,840",
    "2,360,832",
    "100,663,296",
    "591,032,006",
  ):
    assert count in text, count


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_are_views(zipped, tmp_path):
  """Transposed ones, ones that share memory, and files of before torch 1.6, read more than once."""
  source, options = make.ar_dtok(tmp_path, name="ar_clip_fixed_pe")
  file = torch.load(source, weights_only=True)
  sd = file["model"]["sd"]
  want = {name: t.clone() for name, t in sd.items()}
  sd["output.weight"] = want["output.weight"].T.contiguous().T
  both = torch.stack([want["tok_embeddings.weight"], want["tok_embeddings.weight"]])
  sd["tok_embeddings.weight"] = both[1]
  torch.save(file, source, _use_new_zipfile_serialization=zipped)
  _, out = make.there_and_back(source, tmp_path, *options)
  make.same(make.tensors_of(out), {name: make.as_numpy(t) for name, t in want.items()})


def test_memory_is_of_one_tensor(tmp_path, monkeypatch):
  """At most two tensors are held at any time, however many there are."""
  source = make.qwen2(tmp_path / "source", num_hidden_layers=8)
  held, most = [], []
  real_reader, real_give_back = formats.reader, importing.give_back

  def counted(*args):
    read = real_reader(*args)

    def call():
      held.append(read())
      most.append(len(held))
      return held[-1]

    return call

  def given_back(array):
    held[:] = [a for a in held if a is not array]
    real_give_back(array)

  monkeypatch.setattr(formats, "reader", counted)
  monkeypatch.setattr(importing, "give_back", given_back)
  assert make.run("import", source, "--to", tmp_path / "run") == 0
  assert len(most) > 90 and max(most) <= 2 and not held
