"""SANA and Tar-SANA folders through `convert`: bit for bit, loadable, and drawn with."""

import hashlib
import json

import diffusers
import jax
import numpy as np
import pytest
import torch

from tarjax import checkpoint, saving
from tarjax.convert import dc_ae, dif_dtok
from tarjax.convert.rules import flatten
from tarjax.detokenizer import DifDetokenizer
from tarjax.models.dc_ae import DcAeConfig
from tarjax.models.dif_dtok import DifDtokConfig
from tarjax.state import TrainState
from tests.convert import checkpoints as make

CLASSES = {"sana": diffusers.SanaTransformer2DModel, "dc_ae": diffusers.AutoencoderDC}
PARTS = {"transformer": "sana", "vae": "dc_ae"}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def strictly(kind, folder, dtype="float32"):
  """diffusers loads it; nothing is missing, unexpected or of another shape, no bit is changed."""
  load = CLASSES[kind].from_pretrained
  options = {"torch_dtype": make.DTYPES[dtype], "low_cpu_mem_usage": False}
  model, info = load(folder, output_loading_info=True, local_files_only=True, **options)
  assert not any(info.values()), info
  held = {name: make.as_numpy(tensor) for name, tensor in model.state_dict().items()}
  make.same(held, make.tensors_of(folder))


def there_and_back(source, tmp_path, *options):
  assert make.run("import", source, "--to", tmp_path / "run", *options) == 0
  to = tmp_path / "out"
  assert make.run("export", tmp_path / "run", "--to", to, "--format", "diffusers") == 0
  return tmp_path / "run", to


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("dtype", make.DTYPES)
def test_components(kind, dtype, tmp_path):
  shards = "4KB" if dtype == "bfloat16" else "10MB"
  source = getattr(make, kind)(tmp_path / "source", dtype, shards)
  assert (len(list(source.glob("*.safetensors"))) > 1) == (dtype == "bfloat16")
  run, out = there_and_back(source, tmp_path)
  make.same(make.tensors_of(out), make.tensors_of(source))
  assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
  strictly(kind, out, dtype)
  record = json.loads((run / "provenance.json").read_text())
  for file in source.iterdir():
    assert record["files"][file.name] == hashlib.sha256(file.read_bytes()).hexdigest(), file


# fmt: off
VARIANTS = {
    "biases": ("sana", {"attention_bias": True, "norm_elementwise_affine": True}),
    "qk norm": ("sana", {"qk_norm": "rms_norm_across_heads", "guidance_embeds": True}),
    "patches": ("sana", {"patch_size": 2, "interpolation_scale": 2, "out_channels": 8}),
    "pixel shuffle": ("dc_ae", {"downsample_block_type": "pixel_unshuffle",
                                "upsample_block_type": "pixel_shuffle"}),
    "no first stage": ("dc_ae", {"encoder_layers_per_block": [0, 2],
                                 "decoder_layers_per_block": [0, 2]}),
}
# fmt: on


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name, tmp_path, monkeypatch):
  """Also written in shards of our own, and with a config of our own."""
  monkeypatch.setattr("tarjax.convert.exporting.SHARD", 3000)
  kind, config = VARIANTS[name]
  source = getattr(make, kind)(tmp_path / "source", **config)
  run, out = there_and_back(source, tmp_path)
  make.same(make.tensors_of(out), make.tensors_of(source))
  assert len(list(out.glob("*.safetensors"))) > 1 and (out / f"{WEIGHTS}.index.json").is_file()
  strictly(kind, out)
  (run / "original/config.json").unlink()
  assert make.run("export", run, "--to", tmp_path / "ours") == 0
  make.same(make.tensors_of(tmp_path / "ours"), make.tensors_of(source))
  strictly(kind, tmp_path / "ours")


def test_imports_are_what_the_converters_make(tmp_path):
  for kind, module, cls in (("sana", dif_dtok, DifDtokConfig), ("dc_ae", dc_ae, DcAeConfig)):
    source = getattr(make, kind)(tmp_path / f"{kind}_source")
    assert make.run("import", source, "--to", tmp_path / kind) == 0
    config = checkpoint.read_config(tmp_path / kind)
    assert config.task == {"sana": "dif_dtok", "dc_ae": "dc_ae"}[kind]
    want = module.from_torch(cls(**config.model), make.tensors_of(source))
    make.same(flatten(checkpoint.load(str(tmp_path / kind))), flatten(want))


def files_of(folder):
  return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("dtype", make.DTYPES)
def test_a_whole_folder(dtype, tmp_path):
  source = make.sana_folder(tmp_path / "source", dtype)
  run, out = there_and_back(source, tmp_path)
  assert files_of(out) == files_of(source)
  for name in files_of(source):
    if not name.endswith(".safetensors"):
      assert (out / name).read_bytes() == (source / name).read_bytes(), name
  for part, kind in PARTS.items():
    make.same(make.tensors_of(out / part), make.tensors_of(source / part))
    strictly(kind, out / part, dtype)
  negative = torch.load(source / "negative_prompt_embeds.pth", weights_only=True)
  null = checkpoint.load_frozen(run / "transformer")["null"]
  make.same({"null": null}, {"null": make.as_numpy(negative)})
  config = checkpoint.read_config(run / "transformer")
  assert (config.shift, config.sampler, config.dc_ae_size) == (2.5, "dpm", 4)
  record = json.loads((run / "provenance.json").read_text())
  for name in ("negative_prompt_embeds.pth", "scheduler/scheduler_config.json", "model_index.json"):
    assert record["files"][name] == hashlib.sha256((source / name).read_bytes()).hexdigest()


def rewritten(folder, value, name="negative_prompt_embeds.pth"):
  torch.save(value, folder / name)


def drawn_by_diffusers(folder, cond, seeds, scale):
  """Pictures float32[2 y x 3] of SanaPipeline after four steps, from tarjax's noise."""
  noise = np.stack([jax.random.normal(jax.random.key(seed), (2, 2, 4)) for seed in seeds])
  parts = {"text_encoder": None, "tokenizer": None, "local_files_only": True}
  whole = diffusers.SanaPipeline.from_pretrained(folder, **parts)
  whole.set_progress_bar_config(disable=True)
  negative = torch.load(folder / "negative_prompt_embeds.pth", weights_only=True)
  # SanaPipeline takes the deepest DC-AE's factor when the VAE has no six stages
  return whole(
    prompt_embeds=torch.from_numpy(cond),
    prompt_attention_mask=torch.ones(2, 5),
    negative_prompt_embeds=negative[None].expand(2, -1, -1),
    negative_prompt_attention_mask=torch.ones(2, 5),
    latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
    num_inference_steps=4,
    guidance_scale=scale,
    height=32,
    width=32,
    use_resolution_binning=False,
    output_type="np",
    prompt=None,
    negative_prompt=None,
  ).images


@pytest.mark.parametrize("sampler", ["dpm", "euler"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_pictures_are_those_of_diffusers(sampler, scale, tmp_path):
  """The same noise, condition and negative through SanaPipeline and through the two runs."""
  scheduler = None
  if sampler == "euler":
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
  source = make.sana_folder(tmp_path / "source", scheduler=scheduler)
  run, out = there_and_back(source, tmp_path)
  dif = DifDetokenizer(run / "transformer", run / "vae")
  assert (dif.sampler, dif.shift) == ((sampler, 2.5) if sampler == "dpm" else (sampler, 2.0))
  cond = np.random.default_rng(0).normal(size=(2, 5, 10)).astype(np.float32)
  got = dif.draw(jax.numpy.asarray(cond), [3, 4], steps=4, guidance_scale=scale)
  drawn = drawn_by_diffusers(out, cond, [3, 4], scale)
  assert drawn.shape == got.shape and drawn.std() > 0.01
  assert np.abs(got / 255 - drawn).max() <= 0.5 / 255 + 1e-3


def test_a_negative_of_another_length_and_none(tmp_path, capsys):
  source = make.sana_folder(tmp_path / "source", "bfloat16", tokens=3)
  assert make.run("import", source, "--to", tmp_path / "run") == 0
  cond = jax.numpy.ones((1, 5, 10))
  dif = DifDetokenizer(tmp_path / "run/transformer", tmp_path / "run/vae")
  assert dif.draw(cond, [1], steps=2, guidance_scale=2.0).shape == (1, 4, 4, 3)
  (source / "negative_prompt_embeds.pth").unlink()
  capsys.readouterr()
  assert make.run("import", source, "--to", tmp_path / "none") == 0
  assert "without guidance" in capsys.readouterr().out
  dif = DifDetokenizer(tmp_path / "none/transformer", tmp_path / "none/vae")
  assert dif.draw(cond, [1], steps=2).shape == (1, 4, 4, 3)
  with pytest.raises(ValueError, match="needs a null condition"):
    dif.draw(cond, [1], steps=2, guidance_scale=2.0)
  assert make.run("export", tmp_path / "none", "--to", tmp_path / "out") == 0
  assert files_of(tmp_path / "out") == files_of(source)


def test_what_tar_does_not_use_is_kept(tmp_path, capsys):
  source = make.sana_folder(tmp_path / "source")
  (source / "text_encoder").mkdir()
  (source / "text_encoder/model.safetensors").write_bytes(b"x")
  (source / "tokenizer").mkdir()
  (source / "tokenizer/tokenizer.json").write_text("{}")
  scheduler = source / "scheduler/scheduler_config.json"
  config = json.loads(scheduler.read_text()) | {"use_karras_sigmas": True, "solver_order": 1}
  scheduler.write_text(json.dumps(config))
  capsys.readouterr()
  run, out = there_and_back(source, tmp_path)
  said = capsys.readouterr().out
  assert "use_karras_sigmas" in said and "solver_order=2, not the scheduler's 1" in said
  assert files_of(source) == files_of(out)
  assert (out / "text_encoder/model.safetensors").read_bytes() == b"x"
  assert scheduler.read_bytes() == (out / "scheduler/scheduler_config.json").read_bytes()


def train(start, to, trained, **change):
  """What training leaves: the trained part, and of a frozen rest the tree frozen/sana."""
  config = checkpoint.read_config(start).to_dict()
  params, frozen = checkpoint.load(str(start)), {}
  if trained == "condition":
    rest = dict(params, blocks=dict(params["blocks"]))
    params = {"cond": rest.pop("cond"), "blocks": {"cross": rest["blocks"].pop("cross")}}
    frozen = {"sana": rest}
  saver = saving.Saver(to, keep=1)
  arrays = jax.tree.map(jax.numpy.asarray, params)
  saver.save(5, TrainState(5, arrays, {"m": arrays["cond"]}), {})
  saver.close()
  null = np.random.default_rng(5).normal(size=(5, 10)).astype(np.float32)
  frozen |= {"null": null, "ta_tok": {"x": np.ones(2, np.float32)}}
  checkpoint.save_frozen(to, jax.tree.map(jax.numpy.asarray, frozen))
  config |= {"trained": trained, "sana_from": "../run/transformer", **change}
  (to / "config.json").write_text(json.dumps({"config": config}))
  return null


@pytest.mark.parametrize("trained", ["condition", "all"])
def test_a_trained_run_is_exported(trained, tmp_path):
  source = make.sana_folder(tmp_path / "source")
  assert make.run("import", source, "--to", tmp_path / "run") == 0
  train(tmp_path / "run/transformer", tmp_path / "trained", trained)
  assert make.run("export", tmp_path / "trained", "--to", tmp_path / "out") == 0
  make.same(make.tensors_of(tmp_path / "out"), make.tensors_of(source / "transformer"))
  strictly("sana", tmp_path / "out")


@pytest.mark.parametrize("sampler", ["dpm", "euler"])
def test_a_trained_run_and_its_dc_ae_are_exported_as_a_pipeline(sampler, tmp_path, capsys):
  source, trained = make.sana_folder(tmp_path / "source"), tmp_path / "trained"
  assert make.run("import", source, "--to", tmp_path / "run") == 0
  change = {"sampler": sampler, "shift": 1.5, "dc_ae_from": "../run/vae"}
  null = train(tmp_path / "run/transformer", trained, "condition", **change)
  out = tmp_path / "out"
  assert make.run("export", trained, "--to", out) == 0
  for part, kind in PARTS.items():
    make.same(make.tensors_of(out / part), make.tensors_of(source / part))
    strictly(kind, out / part)
  negative = torch.load(out / "negative_prompt_embeds.pth", weights_only=True)
  np.testing.assert_array_equal(negative.numpy(), null)
  cond = np.random.default_rng(0).normal(size=(2, 5, 10)).astype(np.float32)
  dif = DifDetokenizer(trained, tmp_path / "run/vae")
  got = dif.draw(jax.numpy.asarray(cond), [3, 4], steps=4, guidance_scale=3.0)
  drawn = drawn_by_diffusers(out, cond, [3, 4], 3.0)
  assert drawn.shape == got.shape and drawn.std() > 0.01
  assert np.abs(got / 255 - drawn).max() <= 0.5 / 255 + 1e-3
  (tmp_path / "run/vae").rename(tmp_path / "elsewhere")
  capsys.readouterr()
  assert make.run("export", trained, "--to", tmp_path / "part") == 0
  assert "no vae/" in capsys.readouterr().out
  assert files_of(out) - files_of(tmp_path / "part") == {"vae/config.json", f"vae/{WEIGHTS}"}


def test_inspect(tmp_path, capsys):
  source = make.sana_folder(tmp_path / "source", "bfloat16")
  assert make.run("import", source, "--to", tmp_path / "run") == 0
  count = {p: sum(a.size for a in make.tensors_of(source / p).values()) for p in PARTS}
  for path, parts in (
    (source, ("transformer", "vae")),
    (tmp_path / "run", ("transformer", "vae")),
    (source / "vae", ("vae",)),
    (tmp_path / "run/transformer", ("transformer",)),
  ):
    capsys.readouterr()
    assert make.run("inspect", path) == 0
    out = capsys.readouterr().out
    totals = [line for line in out.splitlines() if line.strip().startswith("total")]
    assert len(totals) == len(parts) and "other" not in out
    null = [line for line in out.splitlines() if "beside it: null condition" in line]
    assert [" 50 " in line for line in null] == [True] * ("transformer" in parts and path != source)
    for part, line in zip(parts, totals, strict=True):
      assert f" {count[part]:,} " in line and "bfloat16" in line


def config(part, **change):
  def damage(folder):
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

  return damage


def cut(folder):
  path = folder / "vae" / WEIGHTS
  path.write_bytes(path.read_bytes()[:-10])


def both(folder):
  cut(folder)
  config("transformer", num_layers=4)(folder)
  rewritten(folder, {"a": torch.zeros(2)})


def vae_in_the_place_of_the_transformer(folder):
  for file in (folder / "vae").iterdir():
    (folder / "transformer" / file.name).write_bytes(file.read_bytes())


# fmt: off
DAMAGED = {
    "everything": (both, ("truncated", "layers [3] missing", "no plain tensor")),
    "no vae": (lambda f: (f / "vae").rename(f / "other"), ("has no vae/",)),
    "no weights": (lambda f: (f / "transformer" / WEIGHTS).unlink(), ("has no weights",)),
    "no config": (lambda f: (f / "vae/config.json").unlink(), ("no config.json",)),
    "too few layers": (config("transformer", num_layers=2), ("layers [2] too many",)),
    "other heads": (config("transformer", num_attention_heads=4), ("cross_attention_dim",)),
    "half a head": (config("transformer", num_cross_attention_heads=5), ("blocks/cross/q",)),
    "words for numbers": (config("transformer", num_layers="many"), ("are none of dif_dtok",)),
    "an unknown block": (config("vae", encoder_block_types="Swin"), ("'Swin'",)),
    "other stages": (config("vae", decoder_layers_per_block=[1]), ("are none of dc_ae",)),
    "no scaling": (config("vae", scaling_factor=0), ("scaling=0",)),
    "no size": (config("transformer", sample_size=0), ("size=0",)),
    "no times": (config("transformer", timestep_scale=None), ("are none of dif_dtok",)),
    "swapped": (vae_in_the_place_of_the_transformer, ("is a dc_ae, not a dif_dtok",)),
    "channels": (lambda f: make.dc_ae(f / "vae", latent_channels=8), ("4 channels", "latents 8")),
    "scheduler": (
        lambda f: (f / "scheduler/scheduler_config.json").write_text("{"), ("is not JSON",)),
    "shift": (
        lambda f: (f / "scheduler/scheduler_config.json").write_text('{"shift": "x"}'), ("'x'",)),
    "negative of 3 axes": (lambda f: rewritten(f, torch.zeros(1, 5, 10)), ("[1, 5, 10]",)),
    "negative of another width": (lambda f: rewritten(f, torch.zeros(5, 9)), ("9 wide",)),
    "negative of integers": (
        lambda f: rewritten(f, torch.zeros(5, 10, dtype=torch.int32)), ("int32",)),
    "negative with code": (lambda f: rewritten(f, make.run), ("refused",)),
    "negative cut": (
        lambda f: (f / "negative_prompt_embeds.pth").write_bytes(b"PK\3\4"), ("damaged",)),
}
# fmt: on


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage(damage, tmp_path, capsys):
  change, said = DAMAGED[damage]
  source = make.sana_folder(tmp_path / "source")
  change(source)
  capsys.readouterr()
  assert make.run("import", source, "--to", tmp_path / "run") == 2
  out, err = capsys.readouterr()
  assert err.startswith("error: ") and not out and "Traceback" not in err
  assert all(words in err for words in said), err
  assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_an_interrupted_import_leaves_nothing(tmp_path, monkeypatch):
  source = make.sana_folder(tmp_path / "source")
  real, seen = "tarjax.convert.importing.TreeWriter.finish", []

  def stop(self):
    seen.append(self.path)
    if len(seen) == 2:
      raise KeyboardInterrupt
    self.wait()

  with monkeypatch.context() as patch:
    patch.setattr(real, stop)
    with pytest.raises(KeyboardInterrupt):
      make.run("import", source, "--to", tmp_path / "run")
  assert "vae" in str(seen[1]) and [p.name for p in tmp_path.iterdir()] == ["source"]
  _, out = there_and_back(source, tmp_path)
  assert files_of(out) == files_of(source)
