"""Damaged, foreign and mislabelled files: one sentence with the file's name, exit code 2."""

import io
import json
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.convert import checkpoints as make


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """Whole files to damage: {name: (path, options)}."""
  root = tmp_path_factory.mktemp("whole")
  folder = make.qwen2(root / "qwen", "bfloat16", shards="20KB", tie_word_embeddings=False)
  return {
    "qwen": (folder, []),
    "single": (make.qwen2(root / "single"), []),
    "siglip": (make.siglip(root / "siglip"), []),
    "ta_tok": make.ta_tok(root),
    "vqvae": make.vqvae(root),
    "ar_dtok": make.ar_dtok(root),
  }


class Bomb:
  """Runs a command when it is unpickled by a careless reader."""

  def __reduce__(self):
    return exec, ("raise SystemExit('executed')",)


def copy(world, kind, tmp_path):
  """A copy of a whole checkpoint -> (its path, options)."""
  source, options = world[kind]
  if source.is_file():
    (tmp_path / source.name).write_bytes(source.read_bytes())
    return tmp_path / source.name, options
  for file in source.iterdir():
    (tmp_path / "folder").mkdir(exist_ok=True)
    (tmp_path / "folder" / file.name).write_bytes(file.read_bytes())
  return tmp_path / "folder", options


def refused(path, options, tmp_path, capsys) -> str:
  """The sentence, of an import that left nothing behind."""
  capsys.readouterr()
  before = sorted(p.name for p in tmp_path.iterdir())
  assert make.run("import", path, "--to", tmp_path / "run", *options) == 2
  out, err = capsys.readouterr()
  assert err.startswith("error: ") and not out and "Traceback" not in err
  assert sorted(p.name for p in tmp_path.iterdir()) == before
  return err


def header(path, change):
  """Rewrites the header of a safetensors file."""
  data = path.read_bytes()
  length = struct.unpack("<Q", data[:8])[0]
  text = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def entry(key, value):
  """Changes one field of the first tensor of a header."""

  def change(head):
    name = next(n for n in head if n != "__metadata__")
    head[name][key] = value
    return head

  return change


# fmt: off
SAFETENSORS = {
    "cut in the data": (lambda p: p.write_bytes(p.read_bytes()[:-10]), "truncated"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:50]), "truncated"),
    "longer than described": (lambda p: p.write_bytes(p.read_bytes() + b"more"), "damaged"),
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "a web page": (lambda p: p.write_text("<html>404</html>"), "is none of these"),
    "a pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1"), "LFS"),
    "header of noise": (lambda p: p.write_bytes(struct.pack("<Q", 20) + b"{" + b"\xff" * 40),
                        "damaged"),
    "unknown dtype": (lambda p: header(p, entry("dtype", "F4")), "unknown dtype"),
    "wrong span": (lambda p: header(p, entry("data_offsets", [0, 2])), "does not fill"),
    "negative shape": (lambda p: header(p, entry("shape", [-1, 2])), "no number"),
    "shape of truths": (lambda p: header(p, entry("shape", [True, 2])), "no number"),
    "no offsets": (lambda p: header(p, lambda h: {"x": {"dtype": "F32", "shape": [1]}}), "damaged"),
    "a list": (lambda p: header(p, lambda h: [1, 2]), "is none of these"),
    "a pickle": (lambda p: torch.save({"a": torch.zeros(2)}, p), "by its name"),
}
# fmt: on


@pytest.mark.parametrize("damage", SAFETENSORS)
def test_safetensors(world, damage, tmp_path, capsys):
  path, options = copy(world, "single", tmp_path)
  change, said = SAFETENSORS[damage]
  change(path / "model.safetensors")
  err = refused(path, options, tmp_path, capsys)
  assert said in err and "model.safetensors" in err and err.count("\n") == 1


def lacks_shard(folder):
  sorted(folder.glob("*.safetensors"))[1].unlink()


def lies(folder):
  path = folder / "model.safetensors.index.json"
  index = json.loads(path.read_text())
  files = sorted(set(index["weight_map"].values()))
  index["weight_map"]["model.norm.weight"] = files[0]
  path.write_text(json.dumps(index))


def doubles(folder):
  one, two = sorted(folder.glob("*.safetensors"))[:2]
  save_file(load_file(one) | load_file(two), two, metadata={"format": "pt"})


def config(**change):
  def damage(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

  return damage


# fmt: off
FOLDERS = {
    "a shard is lost": (lacks_shard, "model-00002"),
    "the index lies": (lies, "model.norm.weight"),
    "a tensor is twice there": (doubles, "is also in"),
    "the index is no JSON": (
        lambda f: (f / "model.safetensors.index.json").write_text("{"), "index.json"),
    "the index has no map": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"a": 1}'), "weight_map"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("nothing"), "config.json"),
    "config of half a model": (config(hidden_size=None), "config"),
    "config without heads": (config(num_attention_heads=0), "config"),
    "words for numbers": (config(vocab_size="many"), "config"),
    "half a width": (config(hidden_size=32.5), "config"),
    "no end of words": (config(vocab_size=10**12), "config"),
    "words for a small number": (config(rms_norm_eps="small"), "config"),
    "too many layers": (config(num_hidden_layers=5), "missing"),
    "other heads": (config(num_key_value_heads=4), "blocks/attn/k/kernel"),
    "tied, by its config": (config(tie_word_embeddings=True), "lm_head.weight differs"),
    "a scaled rope": (config(rope_scaling={"rope_type": "yarn"}, rope_parameters=None), "rope"),
    "another model": (config(model_type="siglip"), "embed_tokens"),
    "no number": (config(rms_norm_eps=float("nan")), "eps=nan"),
    "a negative wavelength": (config(rope_theta=-1), "theta=-1"),
    "a gap before the visual words": (
        config(image_start_tag_id=40, image_start_token_id=60, image_end_token_id=70), "60..70"),
    "visual words end before they begin": (
        config(image_start_tag_id=40, image_start_token_id=45, image_end_token_id=30), "45..30"),
}
# fmt: on


@pytest.mark.parametrize("damage", FOLDERS)
def test_folders(world, damage, tmp_path, capsys):
  path, options = copy(world, "qwen", tmp_path)
  change, said = FOLDERS[damage]
  change(path)
  assert said in refused(path, options, tmp_path, capsys)


def resave(change):
  """Changes what a pickle holds."""

  def damage(path):
    file = torch.load(path, weights_only=True)
    change(file["model"])
    torch.save(file, path)

  return damage


def flip(path):
  """Turns one bit of the largest record of a zip archive."""
  with zipfile.ZipFile(path) as archive:
    record = max(archive.infolist(), key=lambda i: i.file_size)
  data = bytearray(path.read_bytes())
  data[record.header_offset + 300] ^= 1
  path.write_bytes(bytes(data))


def old_pickle(path):
  path.write_bytes(pickle.dumps({"model": Bomb()}, protocol=2))


def zipped(path):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    archive.writestr("readme", "hello")
  path.write_bytes(buffer.getvalue())


PROJ = "bottleneck.regularizer.embedding_proj.bias"


def pop(name):
  return resave(lambda m: m["sd"].pop(name))


def put(name, value):
  return resave(lambda m: m["sd"].update({name: value}))


# fmt: off
PICKLES = {
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:-5000]), "damaged"),
    "a single byte": (lambda p: p.write_bytes(b"\x80"), "is none of these"),
    "a bit is wrong": (flip, "checksum"),
    "code in it": (lambda p: torch.save({"model": Bomb()}, p), "exec"),
    "code in an old pickle": (old_pickle, "refused"),
    "a zip of something": (zipped, "damaged"),
    "no state dict": (lambda p: torch.save({"model": 3}, p), "no state dict"),
    "a list": (lambda p: torch.save([torch.zeros(2)], p), "no state dict"),
    "safetensors inside": (lambda p: save_file({"a": torch.zeros(2)}, p), "by its name"),
    "an archive of numpy": (lambda p: np.savez(open(p, "wb"), a=np.zeros(2)), "by its name"),
    "no args": (resave(lambda m: m.pop("args")), "args"),
    "args of another": (resave(lambda m: m.update(args={"a": 1})), "'bottleneck' is missing"),
    "a negative width": (
        resave(lambda m: m["args"]["bottleneck"]["args"].update(bottleneck_dim=-3)), "args"),
    "a tensor is lost": (pop(PROJ), "quantizer/proj/bias"),
    "a tensor too many": (put("surprise", torch.zeros(1)), "surprise"),
    "a wrong shape": (put(PROJ, torch.zeros(25)), "(25,)"),
    "integers": (put(PROJ, torch.zeros(24, dtype=torch.int32)), "int32"),
    "no tensor": (put(PROJ, 3.5), "plain tensor"),
    "a scalar": (put("encoder.embeddings.position_embedding.weight", torch.zeros(())),
                 "position_embedding"),
    "odd pixels": (put("scale_layer.shift", torch.full((1, 3, 1, 1), 0.4)), "scale_layer.shift"),
    "a layer of another dtype": (
        put("encoder.encoder.layers.1.mlp.fc1.bias", torch.zeros(80, dtype=torch.float16)),
        "float16"),
    "another quantiser": (
        resave(lambda m: m["args"]["bottleneck"]["args"]["regularizer"].update(name="fsq")), "fsq"),
}
# fmt: on


@pytest.mark.parametrize("damage", PICKLES)
def test_pickles(world, damage, tmp_path, capsys):
  path, options = copy(world, "ta_tok", tmp_path)
  change, said = PICKLES[damage]
  change(path)
  assert said in refused(path, options, tmp_path, capsys)


@pytest.mark.parametrize(
  "kind, name, value, said",
  [
    ("vqvae", "encoder.conv_in.weight", None, "lacks encoder.conv_in.weight"),
    ("vqvae", "quant_conv.bias", None, "quant_conv/bias"),
    ("vqvae", "encoder.conv_blocks.0.res.0.conv1.bias", torch.zeros(3), "(3,)"),
    ("ar_dtok", "abs_pe", torch.zeros(1, 23, 64), "positions"),
    ("ar_dtok", "layers.1.attention.wqkv.weight", torch.zeros(191, 64), "191 rows"),
    ("ar_dtok", "layers.0.feed_forward.w1.weight", None, "lacks layers.0"),
    ("ar_dtok", "freqs", torch.zeros(2), "freqs"),
  ],
)
def test_other_pickles(world, kind, name, value, said, tmp_path, capsys):
  path, options = copy(world, kind, tmp_path)
  file = torch.load(path, weights_only=True)
  sd = file["model"].get("sd", file["model"])
  sd.pop(name, None)
  if value is not None:
    sd[name] = value
  torch.save(file, path)
  assert said in refused(path, options, tmp_path, capsys)


def test_all_names_are_told_at_once(world, tmp_path, capsys):
  path, options = copy(world, "ta_tok", tmp_path)
  names = ["bottleneck.in_linear.bias", "encode_task_layer.0.weight", "decoder.extra.weight"]

  def change(model):
    model["sd"].pop(names[0])
    model["sd"].pop(names[1])
    model["sd"][names[2]] = torch.zeros(2)

  resave(change)(path)
  err = refused(path, options, tmp_path, capsys)
  assert all(n in err for n in ("in_linear/bias", "encode_task/kernel", names[2]))


@pytest.mark.parametrize(
  "make_it, said",
  [
    (lambda p: np.savez(p, **{"params/img/embedding/kernel": np.zeros((2, 2, 3, 4))}), "lacks"),
    (lambda p: np.savez(p, a=np.array([{}], object)), "Python objects"),
    (lambda p: np.savez(p, a=np.zeros(2)), "no checkpoint of Tar"),
    (lambda p: p.write_bytes(b"PK\x03\x04 not really"), "damaged"),
    (lambda p: zipfile.ZipFile(p, "w").writestr("a.npy", b"\x93NUMPY\1\0\3\0((\n"), "damaged"),
  ],
)
def test_archives(make_it, said, tmp_path, capsys):
  path = tmp_path / "siglip.npz"
  make_it(path)
  assert said in refused(path, [], tmp_path, capsys)


def test_places(world, tmp_path, capsys):
  """Sources and destinations that are not there, or are taken."""
  source, _ = world["single"]
  assert "does not exist" in refused(tmp_path / "nothing", [], tmp_path, capsys)
  (tmp_path / "empty").mkdir()
  (tmp_path / "empty" / "model.safetensors").mkdir()  # by its name a file
  assert "no weights" in refused(tmp_path / "empty", [], tmp_path, capsys)
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "mine").write_text("precious")
  assert "exists already" in refused(source, [], tmp_path, capsys)
  assert make.run("export", tmp_path, "--to", tmp_path / "out") == 2
  assert "not a run" in capsys.readouterr().err
  assert make.run("export", source, "--to", tmp_path / "out") == 2
  assert "not a run: its config.json has no 'config'" in capsys.readouterr().err
  assert make.run("import", source, "--to", tmp_path / "ok") == 0
  assert make.run("export", tmp_path / "ok", "--to", tmp_path / "x", "--format", "torch") == 2
  assert "exported as hf" in capsys.readouterr().err
  assert make.run("inspect", tmp_path / "empty") == 2
  assert "no weights" in capsys.readouterr().err


def test_a_damaged_run_is_told(world, tmp_path, capsys):
  """Files of an import that were lost or cut after it."""
  assert make.run("import", world["single"][0], "--to", tmp_path / "run") == 0
  place = tmp_path / "run/checkpoints/0/params"
  chunk = place / "blocks.mlp.up.kernel" / "1.0.0"
  whole = chunk.read_bytes()
  for data in (None, whole[:-7]):
    chunk.unlink(missing_ok=True)
    if data is not None:
      chunk.write_bytes(data)
    assert make.run("export", tmp_path / "run", "--to", tmp_path / "out") == 2
    assert "blocks/mlp/up/kernel" in capsys.readouterr().err
  (place / "norm.scale" / ".zarray").unlink()
  assert make.run("inspect", tmp_path / "run") == 2
  assert "damaged" in capsys.readouterr().err
  (place / "_METADATA").write_text("{")
  assert make.run("inspect", tmp_path / "run") == 2
  for text in ("{", "[1]", '{"layout": [1]}'):
    (tmp_path / "run" / "provenance.json").write_text(text)
    assert make.run("inspect", tmp_path / "run") == 2
    assert "provenance.json" in capsys.readouterr().err
  for text in (
    "3",
    "[]",
    "{}",
    '{"config": {}}',
    '{"config": {"task": "mllm", "model": {"a": 1}}}',
  ):
    (tmp_path / "run" / "provenance.json").unlink(missing_ok=True)
    (tmp_path / "run" / "config.json").write_text(text)
    assert make.run("export", tmp_path / "run", "--to", tmp_path / "out") == 2
    assert "config.json" in capsys.readouterr().err or text == '{"config": {}}'


def numbers(run):
  path = run / "checkpoints/0/params/norm.scale/.zarray"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "<i4"}))


# fmt: off
RUNS = {
    "integers for a weight": (numbers, "norm/scale: int32"),
    "an empty config of the original": (
        lambda run: (run / "original/config.json").write_text(""), "config.json is not JSON"),
    "no parameters": (
        lambda run: shutil.rmtree(run / "checkpoints/0/params"), "checkpoints/0/params is missing"),
}
# fmt: on


@pytest.mark.parametrize("damage", RUNS)
def test_a_damaged_run_is_not_exported(world, damage, tmp_path, capsys):
  assert make.run("import", world["single"][0], "--to", tmp_path / "run") == 0
  change, said = RUNS[damage]
  change(tmp_path / "run")
  assert make.run("export", tmp_path / "run", "--to", tmp_path / "out") == 2
  assert said in capsys.readouterr().err
  assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_torch_is_optional(world, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "torch", None)
  path, options = world["vqvae"]
  assert "install it" in refused(path, options, tmp_path, capsys)
