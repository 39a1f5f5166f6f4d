"""SANA and DC-AE against diffusers' classes: outputs, exact round trips, configs, refusals."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from safetensors.numpy import save_file

from tarjax.convert import dc_ae, dif_dtok
from tarjax.convert.rules import ConversionError
from tarjax.models.dc_ae import DcAe, DcAeConfig
from tarjax.models.dif_dtok import DifDtok, DifDtokConfig
from tests import golden

SANA = {
  "in_channels": 4,
  "out_channels": 4,
  "num_attention_heads": 2,
  "attention_head_dim": 8,
  "num_layers": 2,
  "num_cross_attention_heads": 2,
  "cross_attention_head_dim": 12,
  "cross_attention_dim": 16,
  "caption_channels": 10,
  "sample_size": 4,
}
SANA_FLAGS = {
  "biases": {"attention_bias": True, "norm_elementwise_affine": True, "mlp_ratio": 1.5},
  "patches": {"patch_size": 2, "interpolation_scale": 2, "out_channels": 8},
  "sprint": {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads", "norm_eps": 1e-2},
}
DC_AE = {
  "latent_channels": 4,
  "attention_head_dim": 4,
  "encoder_block_types": ["ResBlock", "EfficientViTBlock", "EfficientViTBlock"],
  "decoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
  "encoder_block_out_channels": [8, 8, 16],
  "decoder_block_out_channels": [4, 8, 16],
  "encoder_layers_per_block": [1, 1, 2],
  "decoder_layers_per_block": [1, 2, 1],
  "encoder_qkv_multiscales": [[], [], [5]],
  "decoder_qkv_multiscales": [[], [], [3, 5]],
  "decoder_act_fns": ["relu", "silu", "silu"],
}
CONV = {"downsample_block_type": "Conv", "upsample_block_type": "interpolate"}
NO_FIRST = {"encoder_layers_per_block": [0, 1, 1], "decoder_layers_per_block": [0, 1, 1]}
DC_AE_FLAGS = {
  "conv": CONV | {"encoder_out_shortcut": False},
  "no first stage": NO_FIRST | {"decoder_in_shortcut": False, "decoder_conv_act_fn": "silu"},
  "no first stage, conv": NO_FIRST | CONV | {"scaling_factor": 0.5},
}


def filled(model, seed):
  """A torch model without a zero or a one among its weights -> (model, state dict)."""
  torch.manual_seed(seed)
  with torch.no_grad():
    for p in model.parameters():
      p.copy_(0.3 * torch.randn_like(p))
  return model.eval(), {k: v.numpy() for k, v in model.state_dict().items()}


def same(got, want):
  assert got.keys() == want.keys()
  for name, tensor in want.items():
    assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape, name
    np.testing.assert_array_equal(got[name], tensor, err_msg=name)


def reloaded(cls, folder, config, sd):
  """What diffusers loads from our files, which must be exactly what it expects."""
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config))
  save_file(sd, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
  options = {"output_loading_info": True, "low_cpu_mem_usage": False, "local_files_only": True}
  model, info = cls.from_pretrained(folder, **options)
  assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
  return {k: v.numpy() for k, v in model.state_dict().items()}


def nhwc(x):
  return x.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("flags", SANA_FLAGS)
def test_sana_is_that_of_diffusers(flags, tmp_path):
  torch_model, sd = filled(SanaTransformer2DModel(**SANA | SANA_FLAGS[flags]), 0)
  config = dif_dtok.dif_dtok_config(torch_model.config)
  params = dif_dtok.from_torch(config, sd)
  exported = dif_dtok.diffusers_config(config)
  assert dif_dtok.dif_dtok_config(exported) == config
  back = dif_dtok.to_torch(config, params)
  same(reloaded(SanaTransformer2DModel, tmp_path / "x", exported, back), sd)

  x, cond, time = torch.randn(2, 4, 6, 8), torch.randn(2, 5, 10), torch.tensor([3.0, 777.0])
  mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])  # a second one that sees nothing sees all
  guidance = torch.tensor([0.3, 0.5]) if config.guidance else None
  with torch.no_grad():
    want = torch_model(x, cond, time, guidance, mask).sample
  model, extra = DifDtok(config), None if guidance is None else guidance.numpy()
  apply = jax.jit(lambda *args: model.apply({"params": params}, *args))
  got = apply(nhwc(x), time.numpy(), cond.numpy(), mask.numpy(), extra)
  golden.close(got, nhwc(want))


@pytest.mark.parametrize("flags", DC_AE_FLAGS)
def test_dc_ae_is_that_of_diffusers(flags, tmp_path):
  torch_model, sd = filled(AutoencoderDC(**DC_AE | DC_AE_FLAGS[flags]), 1)
  config = dc_ae.dc_ae_config(torch_model.config)
  params = dc_ae.from_torch(config, sd)
  exported = dc_ae.diffusers_config(config)
  assert dc_ae.dc_ae_config(exported) == config
  same(reloaded(AutoencoderDC, tmp_path / "x", exported, dc_ae.to_torch(config, params)), sd)

  x = torch.randn(2, 3, 8, 12)
  with torch.no_grad():
    z = torch_model.encode(x).latent
    want = torch_model.decode(z).sample
  model = DcAe(config)

  @jax.jit
  def run(x):
    z = model.apply({"params": params}, x, method="encode")
    return z, model.apply({"params": params}, z, method="decode")

  got = run(nhwc(x))
  golden.close(got[0], nhwc(z))
  golden.close(got[1], nhwc(want))


@pytest.mark.parametrize("name", ["sana_transformer", "sana_transformer_qknorm"])
def test_recorded_sana_round_trip(name):
  args, sd, _, _ = golden.load(name)
  config = dif_dtok.dif_dtok_config(args)
  same(dif_dtok.to_torch(config, dif_dtok.from_torch(config, sd)), sd)


@pytest.mark.parametrize("name", ["dc_ae", "dc_ae_pixel"])
def test_recorded_dc_ae_round_trip(name):
  args, sd, _, _ = golden.load(name)
  config = dc_ae.dc_ae_config(args)
  same(dc_ae.to_torch(config, dc_ae.from_torch(config, sd)), sd)


def test_other_dtypes_survive():
  args, sd, _, _ = golden.load("sana_transformer_qknorm")
  config = dif_dtok.dif_dtok_config(args)
  half = {k: v.astype(np.float16) for k, v in sd.items()}
  same(dif_dtok.to_torch(config, dif_dtok.from_torch(config, half)), half)


def size(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


def test_released_sizes():
  """Counts of the full-size files; the trained part is all that reads the condition."""
  f32 = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)  # noqa: E731
  c = DifDtokConfig()
  given = (f32(1, 16, 16, c.channels), f32(1), f32(1, 2, c.cond_width))
  sana = nn.meta.unbox(jax.eval_shape(DifDtok(c).init, jax.random.key(0), *given))["params"]
  assert size(sana) == 590_420_768
  assert round(size([sana["cond"], sana["blocks"]["cross"]]) / 1e6, 1) == 151.4
  d = DcAeConfig()
  vae = jax.eval_shape(DcAe(d).init, jax.random.key(0), f32(1, 32, 32, 3))
  assert size(vae) == 312_250_275


def test_the_defaults_are_the_release():
  """Tar's SANA leaves nothing of its config out; a file that does means diffusers' defaults."""
  released = {"num_attention_heads": 36, "num_layers": 28, "num_cross_attention_heads": 16}
  released |= {"cross_attention_head_dim": 72, "cross_attention_dim": 1152}
  released |= {"caption_channels": 1152, "sample_size": 16}
  assert dif_dtok.dif_dtok_config(released) == DifDtokConfig()
  types = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
  released = {"encoder_block_types": types, "decoder_block_types": types, "scaling_factor": 0.41407}
  assert dc_ae.dc_ae_config(released | CONV) == DcAeConfig()


@pytest.mark.parametrize(
  "flag, words",
  [
    ({"qk_norm": "layer_norm"}, "qk_norm='layer_norm'"),
    ({"cross_attention_dim": 99}, "cross_attention_dim=99"),
    ({"num_attention_heads": 3}, "cross_attention_dim=16 is not the width, 24"),
  ],
)
def test_sana_variants_are_refused_by_name(flag, words):
  with pytest.raises(ValueError, match=words):
    dif_dtok.dif_dtok_config(SANA | flag)


@pytest.mark.parametrize(
  "flag, words",
  [
    ({"decoder_norm_types": ["batch_norm", "rms_norm", "rms_norm"]}, "decoder_norm_types"),
    ({"encoder_block_types": "Swin"}, "'Swin'"),
    ({"decoder_act_fns": "relu6"}, "relu6"),
    ({"upsample_block_type": "bicubic"}, "upsample_block_type='bicubic'"),
  ],
)
def test_dc_ae_variants_are_refused_by_name(flag, words):
  with pytest.raises(ValueError, match=words):
    dc_ae.dc_ae_config(DC_AE | flag)


def test_damaged_checkpoints_are_named():
  args, sd, _, _ = golden.load("sana_transformer")
  config = dif_dtok.dif_dtok_config(args)
  with pytest.raises(ConversionError, match="cond/norm/scale .*filled by no tensor"):
    dif_dtok.from_torch(config, {k: v for k, v in sd.items() if k != "caption_norm.weight"})
  with pytest.raises(ConversionError, match="x_embedder.weight: matched by no rule"):
    dif_dtok.from_torch(config, sd | {"x_embedder.weight": np.zeros(3)})
  deeper = dif_dtok.dif_dtok_config(args | {"num_layers": 4})
  with pytest.raises(ConversionError, match="in the checkpoint, .* in the model"):
    dif_dtok.from_torch(deeper, sd)
  args, sd, _, _ = golden.load("dc_ae")
  config = dc_ae.dc_ae_config(args | {"latent_channels": 4})
  with pytest.raises(ConversionError, match="encoder/conv_out/kernel"):
    dc_ae.from_torch(config, sd)


def test_sizes_that_do_not_fit():
  with pytest.raises(ValueError, match="does not divide into heads=5"):
    DifDtokConfig(heads=5)
  with pytest.raises(ValueError, match=r"\(1, 33, 32, 3\) has a side that 32 does not divide"):
    DcAe(DcAeConfig()).apply({"params": {}}, np.zeros((1, 33, 32, 3)), method="encode")
  small = DifDtokConfig(width=8, heads=2, depth=1, patch=2, channels=4)
  with pytest.raises(ValueError, match="do not divide into patches of 2"):
    DifDtok(small).apply({"params": {}}, np.zeros((1, 3, 2, 4)), np.zeros(1), np.zeros((1, 2, 8)))
  with pytest.raises(ValueError, match="guidance is"):
    given = np.zeros((1, 2, 2, 4)), np.zeros(1), np.zeros((1, 2, 8)), None, np.zeros(1)
    DifDtok(small).apply({"params": {}}, *given)
