"""Scenes: placement, purity, the split, and what is painted."""

import dataclasses
import time

import numpy as np
import pytest

from tarjax.data.scenes import (
  COLOURS,
  DOUBLED,
  GROUND,
  RELATIONS,
  SIDE,
  SIZES,
  STEP,
  Scene,
  draw_scene,
  regions,
  relation,
  render,
  scans,
  scans_of,
  stream,
  touches,
  vary,
)


def some(count, n=200, where=None, split="train"):
  for i in range(n):
    rng = stream("test", count, where, split, i)
    yield draw_scene(rng, [(rng.randrange(10), None) for _ in range(count)], where, split)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_glyphs_stay_inside_and_apart(count):
  for scene in some(count):
    for i, g in enumerate(scene.glyphs):
      assert 14 <= g.size <= 22
      assert g.x % STEP == 0 and g.y % STEP == 0
      assert min(g.x, g.y) >= 0 and max(g.x, g.y) + g.size <= SIDE
      assert not any(touches(g, other) for other in scene.glyphs[:i])


def test_most_scans_are_doubled_and_the_others_have_every_size():
  sizes = [g.size for scene in some(1, n=3000) for g in scene.glyphs]
  assert set(sizes) == set(range(SIZES[0], SIZES[1] + 1))
  assert 0.88 < np.mean([size == DOUBLED for size in sizes]) < 0.94


@pytest.mark.parametrize("where", RELATIONS)
def test_two_glyphs_stand_in_the_relation_asked_for(where):
  assert all(relation(*s.glyphs) == where for s in some(2, where=where))


def test_two_glyphs_always_stand_in_some_relation():
  seen = {relation(*s.glyphs) for s in some(2)}
  assert seen == set(RELATIONS) - {"below"}  # they stand in reading order


@pytest.mark.parametrize("count", [2, 3, 4])
def test_without_a_relation_objects_stand_in_reading_order(count):
  for scene in some(count):
    places = [(g.y, g.x) for g in scene.glyphs]
    assert places == sorted(places)


def test_relations_between_diagonal_glyphs_are_not_named():
  a, b = next(some(2, n=1)).glyphs
  a = dataclasses.replace(a, x=1, y=1, size=14)
  assert relation(a, dataclasses.replace(b, x=25, y=26, size=14)) is None
  assert relation(a, dataclasses.replace(b, x=25, y=3, size=14)) == "left"


def test_splits_are_disjoint_and_fixed():
  train = [i for k in range(10) for i in scans_of(k, "train")]
  held_out = [i for k in range(10) for i in scans_of(k, "test")]
  assert sorted(train + held_out) == list(range(1797))
  assert all(i % 5 == 0 for i in held_out) and len(held_out) == 360
  for split, scenes in (("train", train), ("test", held_out)):
    used = {g.scan for s in some(4, n=100, split=split) for g in s.glyphs}
    assert used <= set(scenes)


def test_scans_have_the_label_they_are_drawn_for():
  labels = scans()[1]
  assert all(labels[g.scan] == g.label for s in some(3, n=50) for g in s.glyphs)


def test_rendered_scene_shows_its_inks_on_its_ground():
  for scene in some(2, n=20):
    image = render(scene)
    assert image.shape == (48, 48, 3) and image.dtype == np.uint8
    outside = np.ones((48, 48), bool)
    for g in scene.glyphs:
      outside[g.y : g.y + g.size, g.x : g.x + g.size] = False
      box = image[g.y : g.y + g.size, g.x : g.x + g.size].astype(int)
      assert np.abs(box - COLOURS[g.colour]).sum(-1).min() < 12
    assert (image[outside] == GROUND).all()


def test_varied_scene_keeps_labels_colours_and_relations_but_no_scan():
  moved = 0
  for i, scene in enumerate(some(2, n=50)):
    other = vary(stream("vary", i), scene)
    assert not touches(*other.glyphs)
    assert relation(*other.glyphs) == relation(*scene.glyphs)
    for a, b in zip(scene.glyphs, other.glyphs, strict=True):
      assert (a.label, a.colour) == (b.label, b.colour) and a.scan != b.scan
      assert a.size == b.size and {abs(a.x - b.x), abs(a.y - b.y)} <= {0, STEP}
      moved += (a.x, a.y) != (b.x, b.y)
  assert moved > 25


@pytest.mark.parametrize("side", [4, 8, 12])
def test_regions_say_what_covers_a_third_of_each_square(side):
  for scene in some(3, n=30):
    expected = []
    for y in range(0, SIDE, side):
      for x in range(0, SIDE, side):
        here = [0, 0]
        for g in scene.glyphs:
          inside = sum(
            g.x <= j < g.x + g.size and g.y <= i < g.y + g.size
            for i in range(y, y + side)
            for j in range(x, x + side)
          )
          if 3 * inside >= side * side:
            here = [g.label + 1, list(COLOURS).index(g.colour) + 1]
        expected.append(here)
    np.testing.assert_array_equal(regions(scene, side), expected)


def test_impossible_scenes_are_refused():
  rng = stream("refused")
  with pytest.raises(ValueError, match="1 to 4 digits, not 5"):
    draw_scene(rng, [(1, None)] * 5)
  with pytest.raises(ValueError, match="needs two objects"):
    draw_scene(rng, [(1, None)], "left")
  with pytest.raises(ValueError, match="unknown split 'val'"):
    draw_scene(rng, [(1, None)], None, "val")


def test_a_scene_takes_well_under_a_millisecond():
  for scene in some(4, n=100):  # fills the caches
    render(scene)
  start = time.process_time()
  for scene in some(4, n=300):
    assert isinstance(scene, Scene) and render(scene).any()
  assert (time.process_time() - start) / 300 < 2e-3  # 0.25 ms on an idle core
