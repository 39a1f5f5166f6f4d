"""The scorer reads held-out pictures, survives broken ones, and judges as GenEval does."""

import time

import numpy as np
import pytest
from scipy import ndimage

from tarjax.data.digits import draw_any, t2i_prompts
from tarjax.data.scenes import draw_scene, render, stream
from tarjax.evals.digits_scorer import (
  Found,
  Scorer,
  ceiling,
  chance,
  directions,
  judge,
  scene_of,
  truth,
)


@pytest.fixture(scope="module")
def scorer():
  return Scorer()


def wants(category, *objects, relation=None):
  objects = [{"label": label, "colour": colour} for label, colour in objects]
  return {"category": category, "prompt": "", "objects": objects, "relation": relation}


def at(label, colour, cx, cy, size=16.0):
  half = int(size // 2)
  box = (int(cx) - half, int(cy) - half, int(cx) + half, int(cy) + half)
  return Found(label, colour, cx, cy, box, 1.0)


def test_ceiling_on_held_out_handwriting(scorer):
  result = ceiling(scorer, n=60, seed=11)
  assert result["digit"] >= 0.95 and result["colour"] >= 0.99
  assert result["two"] >= 0.92 and result["four"] >= 0.88
  assert result["t2i"]["overall"] >= 0.94
  assert min(result["t2i"].values()) >= 0.88


def test_boxes_lie_where_digits_are(scorer):
  for i in range(40):
    scene = draw_any(stream("boxes", i), "test", 1 + i % 4)
    found = scorer.read(render(scene))
    assert len(found) == len(scene.glyphs)
    for g in scene.glyphs:
      assert min(abs(f.cx - g.cx) + abs(f.cy - g.cy) for f in found) < 6


def test_blurred_and_noisy_pictures_are_read(scorer):
  right = 0
  for i in range(100):
    rng = stream("noisy", i)
    scene = draw_scene(rng, [(i % 10, None), ((i + 3) % 10, None)], None, "test")
    image = ndimage.gaussian_filter(render(scene).astype(float), (0.8, 0.8, 0))
    image = np.clip(image + np.random.default_rng(i).normal(0, 10, image.shape), 0, 255)
    found = scorer.read(image.astype(np.uint8))
    want = sorted((g.label, g.colour) for g in scene.glyphs)
    right += sorted((f.label, f.colour) for f in found) == want
  assert right >= 88


def test_pictures_without_digits_are_read_as_such(scorer):
  assert scorer.read(np.zeros((48, 48, 3), np.uint8)) == []
  assert scorer.read(np.full((48, 48, 3), (236, 48, 44), np.uint8)) == []
  dirt = np.zeros((48, 48, 3), np.uint8)
  dirt[5:9, 5:9] = 255
  dirt[30:33, 20:24, 0] = 255
  assert scorer.read(dirt) == []
  noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
  assert isinstance(scorer.read(noise), list)
  with pytest.raises(ValueError, match=r"uint8\[y x 3\], not float64"):
    scorer.read(np.zeros((48, 48, 3)))


def test_single_object_and_colours_ignore_company():
  found = [at(3, "red", 10, 10), at(7, "blue", 34, 34)]
  assert judge(found, wants("single_object", (3, None)))
  assert not judge(found, wants("single_object", (4, None)))
  assert judge(found, wants("colours", (3, "red")))
  assert not judge(found, wants("colours", (3, "blue")))
  assert judge(found, wants("two_objects", (7, None), (3, None)))
  assert not judge(found[:1], wants("two_objects", (7, None), (3, None)))
  with pytest.raises(ValueError, match="unknown category 'fruit'"):
    judge(found, wants("fruit", (3, None)))


def test_counting_wants_exactly_as_many():
  three = [at(5, "red", x, 10) for x in (8, 24, 40)]
  for count in (2, 3, 4):
    assert judge(three, wants("counting", *[(5, None)] * count)) == (count == 3)
  assert not judge([*three, at(6, "red", 24, 40)], wants("counting", *[(5, None)] * 3))


def test_attribution_wants_both_colours_on_their_digits():
  prompt = wants("colour_attribution", (3, "red"), (7, "blue"))
  assert judge([at(3, "red", 10, 10), at(7, "blue", 34, 34)], prompt)
  assert not judge([at(3, "blue", 10, 10), at(7, "red", 34, 34)], prompt)


def test_position_by_offset():
  a, b = at(3, "red", 10, 24), at(7, "blue", 36, 24)
  assert directions(a, b) == {"left"} and directions(b, a) == {"right"}
  assert directions(at(3, "red", 24, 8), at(7, "blue", 20, 36)) == {"above"}
  assert directions(at(3, "red", 10, 10), at(7, "blue", 38, 38)) == {"left", "above"}
  assert directions(at(3, "red", 24, 24), at(7, "blue", 26, 24)) == set()
  assert judge([b, a], wants("position", (3, None), (7, None), relation="left"))
  assert not judge([b, a], wants("position", (3, None), (7, None), relation="right"))
  assert not judge([b, a], wants("position", (3, "blue"), (7, None), relation="left"))


def test_verdicts_depend_on_the_picture(scorer):
  """Pictures of other prompts fail, so that a pass means something."""
  prompts = t2i_prompts(60, seed=4)
  found = [scorer.read(render(scene_of(p, stream("verdict", i)))) for i, p in enumerate(prompts)]
  assert sum(map(judge, found, prompts)) >= 54
  assert sum(map(judge, found[6:] + found[:6], prompts)) <= 12


def test_chance_is_low_and_of_every_category():
  levels = chance(n=40)
  assert levels["t2i"]["overall"] < 0.08 and len(levels["t2i"]) == 7
  assert 0.05 < levels["i2t"]["digit"] < 0.15
  assert 0.45 < levels["i2t"]["yesno"] < 0.55 and 0.2 < levels["i2t"]["count"] < 0.3


def test_truth_is_the_scene():
  scene = draw_any(stream("truth"), "test", 3)
  assert [(f.label, f.colour, f.cx) for f in truth(scene)] == [
    (g.label, g.colour, g.cx) for g in scene.glyphs
  ]


def test_reading_is_fast(scorer):
  images = [render(draw_any(stream("fast", i), "test", 4)) for i in range(50)]
  start = time.process_time()
  for image in images:
    scorer.read(image)
  assert (time.process_time() - start) / 50 < 0.03  # 3 ms on an idle core
