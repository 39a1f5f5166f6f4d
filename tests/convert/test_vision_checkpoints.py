"""SigLIP and TA-Tok checkpoints: outputs equal the recorded ones, exports equal the originals."""

import jax
import numpy as np
import pytest

from tarjax.convert import siglip2, ta_tok
from tarjax.convert.rules import ConversionError
from tarjax.models.siglip2 import VisionConfig
from tests import golden

SIGLIP = ["siglip_vision", "siglip_full", "siglip2_naflex_vision"]
TA_TOK = ["ta_tok_l2false", "ta_tok_l2true", "ta_tok_stochastic"]


def same(got, want):
  assert got.keys() == want.keys()
  for name, tensor in want.items():
    assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape, name
    np.testing.assert_array_equal(got[name], tensor, err_msg=name)


def tokenizer(name):
  config, tensors, inputs, outputs = golden.load(name)
  cfg = ta_tok.ta_tok_config(
    config["ta_tok_args"], config["encoder_vision_config"], config["decoder_siglip2_defaults"]
  )
  return cfg, config, tensors, inputs, outputs


@pytest.mark.parametrize("name", SIGLIP)
def test_siglip_outputs(name):
  config, tensors, inputs, outputs = golden.load(name)
  got = siglip2.run_parity(config, tensors, inputs)
  assert got.keys() == outputs.keys()
  for key, want in outputs.items():
    found = got[key]
    if name == "siglip2_naflex_vision" and key.startswith(("hidden_states", "last_hidden")):
      seen = inputs["attention_mask"] > 0  # padded positions hold nothing of meaning
      found, want = found[seen], want[seen]
    golden.close(found, want)


@pytest.mark.parametrize("level", ["vision_model.", ""])
@pytest.mark.parametrize("name", SIGLIP)
def test_siglip_round_trip(name, level):
  config, tensors, _, _ = golden.load(name)
  spelled = {k.replace("vision_model.", level): v for k, v in tensors.items()}
  params = siglip2.import_siglip2(config, spelled)
  same(siglip2.export_siglip2(config, params, level), spelled)


@pytest.mark.parametrize("name", TA_TOK)
def test_ta_tok_outputs(name):
  _, config, tensors, inputs, outputs = tokenizer(name)
  got = ta_tok.run_parity(config, tensors, inputs)
  assert got.keys() == outputs.keys()
  for key, want in outputs.items():
    if key.endswith(".indices"):
      margin = outputs.get(key.replace("indices", "margin"), np.ones(want.shape))
      clear = margin > 1e-4
      assert clear.mean() > 0.9
      np.testing.assert_array_equal(got[key][clear], want[clear], err_msg=key)
    else:
      golden.close(got[key], want)


@pytest.mark.parametrize("name", TA_TOK)
@pytest.mark.parametrize("level", ["vision_model.", ""])
def test_ta_tok_round_trip(name, level):
  cfg, _, tensors, _, _ = tokenizer(name)
  spelled = {k.replace("vision_model.", level): v for k, v in tensors.items()}
  params, unused = ta_tok.import_ta_tok(cfg, spelled)
  same(ta_tok.export_ta_tok(cfg, params, unused, level), spelled)


def test_a_file_of_the_reference():
  cfg, config, tensors, _, _ = tokenizer("ta_tok_l2false")
  args, read = ta_tok.read_ta_tok(golden.FIXTURES / "ta_tok_tiny.pth")
  again = ta_tok.ta_tok_config(
    args, config["encoder_vision_config"], config["decoder_siglip2_defaults"]
  )
  assert again == cfg
  same(read, tensors)


def test_the_release_has_the_published_size():
  """Counts of paper-sized parts: encoder without its head, decoder without its head."""
  bottleneck = {"bottleneck_dim": 1536, "regularizer": {"name": "simvq", "args": {}}}
  bottleneck["regularizer"]["args"] = {"codebook_size": 65536}
  cfg = ta_tok.ta_tok_config({"bottleneck": {"name": "bottleneck", "args": bottleneck}})
  assert (cfg.blocks, cfg.decoder.heads, cfg.decoder.positions) == (26, 12, 256)

  def count(config):
    tree = siglip2.vision_shapes(config)
    sizes = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in tree.items()}
    return sum(sizes.values()) - sizes["head"], sizes["head"]

  assert count(cfg.encoder) == (412_987_248, 15_238_352)
  assert count(cfg.decoder) == (39_267_072, 12_398_592)


def test_unused_tensors_may_be_absent_and_a_teacher_is_left_out():
  cfg, _, tensors, _, _ = tokenizer("ta_tok_l2false")
  params, _ = ta_tok.import_ta_tok(cfg, tensors)
  lean = ta_tok.export_ta_tok(cfg, params, {}) | {"teacher.anything": np.zeros(3)}
  assert not any("layers.3" in k or "head" in k for k in lean)
  again, unused = ta_tok.import_ta_tok(cfg, lean)
  assert not unused
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_damaged_checkpoints_are_named():
  cfg, _, tensors, _, _ = tokenizer("ta_tok_l2false")
  missing = {k: v for k, v in tensors.items() if k != "bottleneck.in_linear.bias"}
  with pytest.raises(ConversionError, match="in_linear/bias"):
    ta_tok.import_ta_tok(cfg, missing)
  shift = {"scale_layer.shift": tensors["scale_layer.shift"] + 0.1}
  with pytest.raises(ConversionError, match="scale_layer"):
    ta_tok.import_ta_tok(cfg, tensors | shift)
  rows = {"bottleneck.regularizer.embedding.weight": np.zeros((65, 24), np.float32)}
  with pytest.raises(ConversionError, match="quantizer/embedding"):
    ta_tok.import_ta_tok(cfg, tensors | rows)
  with pytest.raises(ConversionError, match="no rule"):
    ta_tok.import_ta_tok(cfg, tensors | {"surprise": np.zeros(1)})
  config, siglip, _, _ = golden.load("siglip_vision")
  with pytest.raises(ConversionError, match="layers|blocks"):
    siglip2.import_siglip2({**config, "num_hidden_layers": 5}, siglip)
  with pytest.raises(ValueError, match="clip"):
    siglip2.model_config({"model_type": "clip"})


def test_published_configs_leave_out_defaults():
  full = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
  given = {**full, "num_attention_heads": 16, "image_size": 384, "patch_size": 14}
  configs = siglip2.model_config({"model_type": "siglip", "vision_config": given})
  assert configs["vision"] == VisionConfig(1152, 27, 16, 4304, 384, 14)
  assert (configs["text"].length, configs["text"].width) == (64, 768)
