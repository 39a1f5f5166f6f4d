"""What a config sets for a kind of chip: who wins, and what cannot be set."""

from types import SimpleNamespace

import pytest

from configs import base, mllm
from tarjax import chips
from tarjax.config import UserError, parse

V5E, V5P, CPU = (SimpleNamespace(device_kind=k) for k in ("TPU v5 lite", "TPU v5", "cpu"))


def on(device, *flags, file="mllm.py:7b_pretrain"):
  config, _ = parse([f"--config=configs/{file}", "--workdir=run", *flags])
  return chips.settled(config, [device])


def test_a_chip_has_values_of_its_own():
  found = {d.device_kind: on(d) for d in (V5E, V5P, CPU)}
  own = {k: (c.mesh.fsdp, c.model.remat, c.loss_chunk) for k, c in found.items()}
  assert own == {
    "TPU v5 lite": (32, "attn", 256),
    "TPU v5": (16, "attn,qkv", 512),
    "cpu": (16, "attn,qkv", 512),
  }
  assert found["TPU v5"].compiler.to_dict() == base.CHIPS["v5p"]["compiler"]
  assert not found["cpu"].compiler and not any(c.chips for c in found.values())
  assert on(SimpleNamespace(device_kind="TPU v5p")) == found["TPU v5"]  # its other name
  assert chips.settled(found["TPU v5 lite"], [V5P]).mesh.fsdp == 32  # once is enough


def test_the_command_line_wins():
  one = on(V5E, "--config.model.remat=full", "--config.mesh.fsdp=64")
  assert (one.mesh.fsdp, one.model.remat, one.loss_chunk) == (64, "full", 256)
  assert on(V5E, "--config.chips.v5e.loss_chunk=128").loss_chunk == 128
  assert on(V5E, "--config.mesh.model=2").mesh.fsdp == 32  # the rest of a group stays
  assert mllm.get_config("7b_pretrain").chips.v5e.mesh.fsdp == 32  # nothing is left of the calls


def test_shards_of_janus_stay_aligned_on_every_chip():
  assert on(V5E, file="mllm.py:7b_pretrain_janus").mesh.fsdp == 8


@pytest.mark.parametrize(
  "settings, said",
  [
    ("v4=dict(loss_chunk=2)", "config.chips.v4: the chips are v5e, v5p, v6e"),
    ("v5e=dict(batch=2)", "config.chips.v5e sets batch, on which weights depend"),
    ("v5e=dict(model=dict(width=2))", "sets model.width, on which weights depend"),
    ("v5e=dict(mesh=dict(fdsp=2))", "sets mesh.fdsp, which the config does not have"),
    ("v5e=3", "config.chips.v5e=3 is not a group of keys"),
    ("v5e=dict(mesh=8)", "config.chips.v5e.mesh=8 is not a group of keys"),
    ("v5e=dict(loss_chunk='many')", "config.chips.v5e: .*loss_chunk"),
  ],
)
def test_what_a_config_cannot_set(settings, said, tmp_path):
  page = "from configs import mllm\n\ndef get_config():\n  config = mllm.get_config('tiny')\n"
  (tmp_path / "own.py").write_text(page + f"  config.chips = dict({settings})\n  return config\n")
  with pytest.raises(UserError, match=said):
    parse([f"--config={tmp_path / 'own.py'}", "--workdir=run"])
