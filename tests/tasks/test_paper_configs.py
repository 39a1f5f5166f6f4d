"""The configs of the paper: Table 8's values, networks of the published sizes, aligned shards."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh
from tiny_world import parse

from configs import ar_dtok, base, dif_dtok, hybrid, mllm, ta_tok, vqvae
from tarjax import optim, sharding, tasks
from tarjax.models import ar_dtok as ar_models
from tarjax.models.dc_ae import DcAeConfig
from tarjax.models.dif_dtok import DifDtokConfig
from tarjax.models.vqvae import VqVaeConfig
from tarjax.tasks.inputs import draw_scale

# Table 8: peak lr, schedule, optimizer, betas, decay, warm-up, batch, steps, clip, where it ends.
# fmt: off
TABLE = {
  "ta_tok:full":        (2e-4, "cosine",   "adamw", (.9, .99),  1e-4, 15_625, 512, 390_625, 1, .01),
  "ar_dtok:256":        (4e-4, "cosine",   "adamw", (.9, .95),  .05,   2_604, 768,  65_104, 1, .01),
  "ar_dtok:512":        (1e-4, "cosine",   "adamw", (.9, .95),  .05,   9_583,  96, 239_583, 1, .01),
  "ar_dtok:1024":       (1e-4, "cosine",   "adamw", (.9, .95),  .05,   2_500,  48,  62_500, 1, .01),
  "dif_dtok:512":       (1e-4, "constant", "came",  (.9, .999), 0.,    4_791,  48, 479_166, .1, 0),
  "mllm:1p5b_pretrain": (5e-5, "cosine",   "adamw", (.9, .999), 0.,    2_929, 1024, 97_656, 1, 0),
  "mllm:1p5b_sft":      (5e-5, "cosine",   "adamw", (.9, .999), 0.,      468, 256,  15_625, 1, 0),
  "mllm:7b_sft_reflect": (5e-5, "cosine",  "adamw", (.9, .999), 0.,      468, 256,  15_625, 1, 0),
  "mllm:7b_pretrain":   (5e-5, "cosine",   "adamw", (.9, .999), 0.,    2_929, 1024, 97_656, 1, 0),
  "mllm:7b_sft":        (5e-5, "cosine",   "adamw", (.9, .999), 0.,      468, 256,  15_625, 1, 0),
  "mllm:demo":          (5e-5, "cosine",   "adamw", (.9, .999), 0.,    1_800,  64,  60_000, 1, 0),
}
SIZES = {  # what is trained, and what is frozen beside it
  "ta_tok:full": (447_489_952, 498_408_736),
  "ar_dtok:256_s": (34_646_784, None), "ar_dtok:256_b": (111_760_896, None),
  "ar_dtok:256_lp": (654_241_280, None), "ar_dtok:256_xl": (776_153_600, 147_308_544),
  "ar_dtok:512_xl": (777_136_640, None), "ar_dtok:1024_xl": (781_068_800, None),
  "dif_dtok:512": (151_422_336, None),
  "mllm:1p5b_pretrain": (1_543_714_304 + 65_664 * 1536, 0),
  "mllm:7b_sft": (7_615_616_512 + 2 * 65_536 * 3584, 0),
  "mllm:1p5b_pretrain_vqvae": (1_543_714_304 + 16_512 * 1536, 0),
  "mllm:1p5b_pretrain_janus": (1_543_714_304 + 16_512 * 1536 + 2690 * 1536, 397_745_440),
  "vqvae:mse": (71_883_403, 0),
  "vqvae:full": (71_883_403 + 2_765_633, 14_714_688 + 1472),  # PatchGAN; LPIPS on VGG16
  "llamagen:xl": (774_699_520, 0),
  "llamagen:xxl": (1_410_972_672, 0),
}
# fmt: on
OTHERS = ("ar_dtok:256_s", "ar_dtok:1024_xxxl", "vqvae:full", "llamagen:xl")
OTHERS += ("mllm:1p5b_pretrain_vqvae", "mllm:7b_sft_janus", "mllm:7b_pretrain_hybrid")
OTHERS += ("hybrid:full", "hybrid:lite")
CHIPS = {
  "ar_dtok:512": 32,
  "ar_dtok:1024": 16,
  "ar_dtok:1024_xxxl": 16,
  "dif_dtok:512": 16,
}  # the others: 64
ALIGNED = 16  # TPU sublanes of bfloat16: a shard of another length costs twice the traffic


@pytest.mark.parametrize("name", TABLE)
def test_table_8(name, tmp_path):
  config = parse(name, tmp_path)
  o = config.optim
  row = (o.lr, o.schedule, o.name, (o.b1, o.b2), o.weight_decay, o.warmup)
  assert (*row, config.batch, config.steps, o.clip, o.final) == TABLE[name]
  assert (o.b3, o.eps) == (0.9999, 1e-30) if o.name == "came" else o.eps == 1e-8
  assert o.ema == 0 and config.accumulate == 1
  optim.make_optimizer(o, config.steps)
  if name[:4] != "mllm":  # one scale a step
    assert {k: v / 4 for k, v in config.scales.items()} == {"1": 0.5, "2": 0.25, "3": 0.25}
    drawn = np.bincount([draw_scale(config, step) for step in range(4000)], minlength=4)
    np.testing.assert_allclose(drawn[1:] / 4000, [0.5, 0.25, 0.25], atol=0.03)
    assert tasks.make_task(config).static(7) == {"scale": draw_scale(config, 7)}
  else:  # a scale for each example
    assert dict(config.data.scales) == {"1": 2.0, "2": 1.0, "3": 1.0}
    assert tasks.make_task(config).static(7) == {}


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_the_published_sizes(name, tmp_path):
  trained, frozen = SIZES[name]
  task = tasks.make_task(parse(name, tmp_path))
  assert count(shapes(task.init)) == trained
  if frozen is not None:
    assert count(shapes(task.init_frozen)) == frozen


def shapes(init):
  return jax.eval_shape(init, jax.random.key(0))


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", [*TABLE, *OTHERS])
def test_shards_are_aligned(name, tmp_path):
  """On the mesh of the config, every axis that is cut is cut into whole sublanes."""
  config = parse(name, tmp_path)
  sizes = {axis: config.mesh[axis] for axis in sharding.AXES}
  sizes["data"] = CHIPS.get(name, 64) // (sizes["fsdp"] * sizes["model"])
  assert config.batch % (sizes["data"] * sizes["fsdp"]) == 0
  mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
  task = tasks.make_task(config)
  for tree in (shapes(task.init), shapes(task.init_frozen)):
    where = sharding.tree_shardings(tree, mesh)
    for leaf, place in zip(
      jax.tree.leaves(nn.meta.unbox(tree)), jax.tree.leaves(where), strict=True
    ):
      cut = place.shard_shape(leaf.shape)
      assert all(c == full or c % ALIGNED == 0 for c, full in zip(cut, leaf.shape, strict=True))
      assert leaf.size < 2e7 or sizes["fsdp"] == 1 or cut != leaf.shape, (leaf.shape, place)


def test_each_stage_starts_from_the_one_before(tmp_path):
  starts = {
    "ar_dtok:256_xl": {},
    "ar_dtok:512_lp": {"": "../ar_dtok_256_lp"},
    "ar_dtok:1024": {"": "../ar_dtok_512_xl"},
    "ta_tok:full": {"encoder": "../siglip2:vision"},
    "mllm:7b_pretrain": {"": "../start_7b"},
    "mllm:7b_sft": {"": "../mllm_7b_pretrain"},
    "mllm:1p5b_sft_reflect": {"": "../mllm_1p5b_pretrain"},
    "mllm:demo": {"": "../start_1p5b"},
  }
  for name, start in starts.items():
    assert parse(name, tmp_path).init.to_dict() == start
  for name in ("ar_dtok:256", "dif_dtok:512", "mllm:1p5b_pretrain", "mllm:7b_sft"):
    assert parse(name, tmp_path).ta_tok_from == "../ta_tok"
  before, after = (tasks.make_task(parse(f"ar_dtok:{r}", tmp_path)) for r in ("256", "512"))
  a, b = (jax.tree.map(np.shape, nn.meta.unbox(shapes(t.init))) for t in (before, after))
  assert a.pop("positions") == (729 + 256 - 1, 1280) and b.pop("positions") == (
    729 + 1024 - 1,
    1280,
  )
  assert a == b


def test_mixtures(tmp_path):
  for name in ("mllm:1p5b_pretrain", "mllm:7b_sft"):
    weights = [spec["weight"] for spec in parse(name, tmp_path).data.sources]
    assert weights[0] == 2 and sum(weights[1:4]) == pytest.approx(2) and weights[4] == 1
    assert weights[1] == pytest.approx(4 * weights[2]) and weights[2] == weights[3]
  plain, judged = (parse(f"mllm:7b_{s}", tmp_path).data.sources for s in ("sft", "sft_reflect"))
  (added,) = (s["weight"] for s in judged if s["path"] == "../sft_reflect/data")
  i2t = judged[0]["weight"]
  assert added / i2t == pytest.approx(340 / 1341)  # Table 7
  assert added + i2t == pytest.approx(plain[0]["weight"])
  assert judged[1:4] == plain[1:4] and judged[-1] == plain[-1]
  assert [s["weight"] for s in parse("mllm:demo", tmp_path).data.sources] == [2, 4, 1]
  assert [s["weight"] for s in parse("ta_tok:full", tmp_path).data.sources] == [1, 1]


def test_networks_of_configs_are_those_of_the_models(tmp_path):
  for size, fields in ar_dtok.SIZES.items():
    if size != "tiny":
      depth, heads, width = ar_models.FAMILY[size.upper()]
      assert fields == {"depth": depth, "heads": heads, "width": width}
  assert len(ar_dtok.SIZES) == len(ar_models.FAMILY) + 1
  for name, default in (("dif_dtok:512", DifDtokConfig()), ("vqvae:full", VqVaeConfig())):
    net = parse(name, tmp_path).model.to_dict() | {"dtype": "float32", "remat": "none"}
    assert type(default)(**{k: v for k, v in net.items() if hasattr(default, k)}) == default
  dc_ae = parse("dif_dtok:512", tmp_path).dc_ae.to_dict() | {"dtype": "float32"}
  assert DcAeConfig(**dc_ae) == DcAeConfig()
  words = parse("mllm:7b_sft", tmp_path).words
  assert (words.text_rows, words.codes) == (151_665, 65_536) == (base.QWEN_WORDS, 65_536)


@pytest.mark.parametrize("stage", [ta_tok, ar_dtok, dif_dtok, mllm, vqvae, hybrid])
@pytest.mark.parametrize("variant", ["huge", "2048_xl", "256_xxs", "1p5b", "1p5b_rl"])
def test_an_unknown_variant_is_told(stage, variant):
  with pytest.raises(ValueError, match="unknown variant .*: .*(full|256|xl|512|pretrain|1p5b)"):
    stage.get_config(variant)
