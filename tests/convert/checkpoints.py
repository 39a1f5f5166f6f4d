"""Small checkpoints in the released layouts, written by the original's own libraries."""

import json
from pathlib import Path
from typing import Any

import diffusers
import ml_dtypes
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from tarjax.convert import __main__ as convert
from tests import golden

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOWER = {
  "hidden_size": 48,
  "intermediate_size": 80,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
}
VISION = TOWER | {"image_size": 28, "patch_size": 7}
TEXT = TOWER | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
QWEN = {
  "vocab_size": 96,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "bos_token_id": 1,
  "eos_token_id": 2,
}
SANA = {
  "in_channels": 4,
  "out_channels": 4,
  "num_attention_heads": 2,
  "attention_head_dim": 8,
  "num_layers": 3,
  "num_cross_attention_heads": 2,
  "cross_attention_head_dim": 12,
  "cross_attention_dim": 16,
  "caption_channels": 10,
  "sample_size": 2,
}
DC_AE = {
  "latent_channels": 4,
  "attention_head_dim": 4,
  "encoder_block_types": ["ResBlock", "EfficientViTBlock"],
  "decoder_block_types": ["ResBlock", "EfficientViTBlock"],
  "encoder_block_out_channels": [8, 16],
  "decoder_block_out_channels": [8, 16],
  "encoder_layers_per_block": [1, 1],
  "decoder_layers_per_block": [1, 1],
  "encoder_qkv_multiscales": [[], [5]],
  "decoder_qkv_multiscales": [[], [5]],
  "downsample_block_type": "Conv",
  "upsample_block_type": "interpolate",
  "scaling_factor": 0.5,
}
DPM = {"flow_shift": 2.5, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def run(*argv) -> int:
  return convert.main([str(a) for a in argv])


def there_and_back(source, tmp_path, *options):
  """Imports and exports; returns (run, export)."""
  assert run("import", source, "--to", tmp_path / "run", *options) == 0
  assert run("export", tmp_path / "run", "--to", tmp_path / "out") == 0
  out = tmp_path / "out"
  return tmp_path / "run", out if source.is_dir() else out / source.name


def random_(model, dtype="float32"):
  """Every parameter random, so that none that goes astray is a zero or a one."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for p in model.parameters():
      p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
  return model.to(DTYPES[dtype]).eval()


def qwen2(folder: Path, dtype="float32", shards="10MB", **config):
  model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**(QWEN | config)))
  random_(model, dtype).save_pretrained(folder, max_shard_size=shards)
  return folder


def siglip(folder: Path, dtype="float32"):
  config = transformers.SiglipConfig(vision_config=VISION, text_config=TEXT)
  random_(transformers.SiglipModel(config), dtype).save_pretrained(folder)
  return folder


def siglip_vision(folder: Path, dtype="float32", level=""):
  model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION))
  random_(model, dtype).save_pretrained(folder)
  spell(folder, level)
  return folder


def naflex(folder: Path, dtype="float32", level=""):
  config = transformers.Siglip2VisionConfig(**TOWER, num_patches=16, patch_size=2)
  random_(transformers.Siglip2VisionModel(config), dtype).save_pretrained(folder)
  spell(folder, level)
  return folder


def sana(folder: Path, dtype="float32", shards="10MB", **config):
  model = diffusers.SanaTransformer2DModel(**(SANA | config))
  random_(model, dtype).save_pretrained(folder, max_shard_size=shards)
  return folder


def dc_ae(folder: Path, dtype="float32", shards="10MB", **config):
  model = diffusers.AutoencoderDC(**(DC_AE | config))
  random_(model, dtype).save_pretrained(folder, max_shard_size=shards)
  return folder


def sana_folder(folder: Path, dtype="float32", scheduler=None, tokens=5):
  """A whole SANA as diffusers saves it, with Tar's negative embeddings."""
  whole = diffusers.SanaPipeline(
    tokenizer=None,
    text_encoder=None,
    vae=random_(diffusers.AutoencoderDC(**DC_AE), dtype),
    transformer=random_(diffusers.SanaTransformer2DModel(**SANA), dtype),
    scheduler=scheduler or diffusers.DPMSolverMultistepScheduler(**DPM),
  )
  whole.save_pretrained(folder)
  generator = torch.Generator().manual_seed(1)
  negative = torch.randn(tokens, SANA["caption_channels"], generator=generator)
  torch.save(negative.to(DTYPES[dtype]), folder / "negative_prompt_embeds.pth")
  return folder


def spell(folder: Path, level: str) -> None:
  """Renames the tower's tensors to have this prefix."""
  file = folder / "model.safetensors"
  tensors = {level + n.removeprefix("vision_model."): t for n, t in load_file(file).items()}
  save_file(tensors, file, metadata={"format": "pt"})


def state_dict(name: str, dtype="float32") -> dict[str, torch.Tensor]:
  """A golden state dict in another dtype; constants such as .5 are exact in all."""
  tensors = golden.load(name)[1]
  return {n: torch.from_numpy(np.array(t)).to(DTYPES[dtype]) for n, t in tensors.items()}


def given(folder: Path, config: dict[str, Any]) -> Path:
  """A file for --config, beside the checkpoint's folder."""
  path = folder / "given.json"
  path.write_text(json.dumps(config))
  return path


def ta_tok(folder: Path, dtype="float32", name="ta_tok_l2true"):
  """-> (file, options of the import)."""
  config = golden.load(name)[0]
  sd = state_dict(name, dtype)
  file = {"model": {"name": "ta_tok", "args": config["ta_tok_args"], "sd": sd}}
  torch.save(file, folder / "ta_tok.pth")
  return folder / "ta_tok.pth", ["--config", given(folder, config)]


def vqvae(folder: Path, dtype="float32"):
  torch.save({"model": state_dict("vqvae", dtype)}, folder / "vq_ds16_t2i.pt")
  return folder / "vq_ds16_t2i.pt", []


def ar_dtok(folder: Path, dtype="float32", name="ar_clip_learned_pe"):
  config = golden.load(name)[0]
  sizes = {k: config.pop(k) for k in ("n_layer", "n_head", "dim")}
  file = {"model": {"name": "llama-abs-toy", "args": config, "sd": state_dict(name, dtype)}}
  torch.save(file, folder / "ar_dtok_toy.pth")
  return folder / "ar_dtok_toy.pth", ["--config", given(folder, {"name_means": sizes})]


def tensors_of(path: Path) -> dict[str, np.ndarray]:
  """What a file or folder holds, read by the original's libraries."""
  if path.is_dir():
    found: dict[str, Any] = {}
    for file in sorted(path.glob("*.safetensors")):
      found |= load_file(file)
  else:
    found = torch.load(path, weights_only=True)["model"]
    found = found.get("sd", found)
  return {name: as_numpy(tensor) for name, tensor in found.items()}


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
  if tensor.dtype == torch.bfloat16:
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.numpy()


def same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
  """Names, shapes, dtypes and every bit."""
  assert got.keys() == want.keys()
  for name, array in want.items():
    assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
    assert got[name].tobytes() == array.tobytes(), name
