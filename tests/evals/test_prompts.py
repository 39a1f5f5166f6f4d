"""Prompts for judgement data: none of the benchmarks' own, and fit for their judges."""

import itertools
import json
import re

import pytest

from tarjax.config import UserError
from tarjax.data.scenes import stream
from tarjax.evals import digits_scorer, geneval, geneval_rules, prompts
from tarjax.evals.judges import NAMES

NOTHING = prompts.Excluded()


def plain(text):
  """Words without case, articles and what is photographed; not the code under test."""
  text = re.sub(r"^(an?|the) (photo|photograph|picture|image|drawing) of ", "", text.lower())
  return re.sub(r"\b(an?|the) ", "", re.sub(r"[^\w ]", "", text)).strip()


def benchmark_forms():
  """GenEval's six forms over all of COCO's classes, a superset of its 553 prompts."""
  colours = geneval_rules.COLOURS
  for one in NAMES:
    yield f"a photo of a {one}"
    for number in ("one", "two", "three", "four", "five"):
      for many in (f"{one}s", f"{one}es", prompts.plural(one)):
        yield f"a photo of {number} {many}"
    for colour in colours:
      yield f"a photo of a {colour} {one}"
  for one, other in itertools.permutations(NAMES, 2):
    yield f"a photo of a {one} and a {other}"
    for relation in geneval_rules.RELATIONS:
      yield f"a photo of a {one} {relation} a {other}"


def test_geneval_style_keeps_off_geneval():
  found, passed = prompts.draw_all(["geneval-style"], 3000, 0, NOTHING)
  drawn = {plain(row["prompt"]) for row in found}
  assert len(found) == 3000 and passed == 0
  assert drawn.isdisjoint({plain(text) for text in benchmark_forms()})
  things = "|".join(NAMES)
  colour = "|".join(geneval_rules.COLOURS)
  pair = re.compile(rf"({colour}) ({things}) and ({colour}) ({things})")
  assert not any(pair.fullmatch(text) for text in drawn)


def test_geneval_style_is_what_genevals_judge_reads(tmp_path):
  """Every clause is in the prompt, and a picture of exactly that is right."""
  found, _ = prompts.draw_all(["geneval-style"], 300, 1, NOTHING)
  path = tmp_path / geneval.LINES
  path.write_text("".join(json.dumps(row) + "\n" for row in found))
  assert geneval.read_metadata(path) == found
  assert {row["tag"] for row in found} == set(geneval_rules.TAGS)
  places = {"left of": (-200, 0), "right of": (200, 0), "above": (0, -200), "below": (0, 200)}
  for row in found:
    shown, inks = {}, {}
    for clause in row["include"]:
      assert clause["class"] in NAMES and clause["class"].split()[0][:3] in row["prompt"]
      assert clause.get("color", "") in row["prompt"]
      x, y = places[clause["position"][0]] if "position" in clause else (0, 0)
      box = (x, y, x + 50, y + 50)
      shown[clause["class"]] = [geneval_rules.Thing(box, 0.99)] * clause["count"]
      inks[clause["class"]] = [clause.get("color")] * clause["count"]
    assert geneval_rules.judge(shown, row, lambda name, things, inks=inks: inks[name]) == (True, "")
    if row["tag"] == "position":
      word = row["include"][1]["position"][0].split()[0]
      assert word in row["prompt"] or word == "below" and "below" in row["prompt"]
      one, other = (clause["class"] for clause in row["include"])
      assert row["prompt"].index(other) < row["prompt"].rindex(one)


def test_dpg_style_is_dense():
  found, _ = prompts.draw_all(["dpg-style"], 50, 0, NOTHING)
  assert all(len(row["prompt"].split()) >= 35 and row["tag"] == "dpg" for row in found)


def test_digits_have_what_the_scorer_judges():
  found, _ = prompts.draw_all(["digits"], 60, 3, NOTHING)
  for row in found:
    scene = digits_scorer.scene_of(row, stream(row["prompt"]))
    assert digits_scorer.judge(digits_scorer.truth(scene), row)


def test_more_prompts_begin_with_fewer():
  styles = ["geneval-style", "dpg-style"]
  few, many = (prompts.draw_all(styles, n, 5, NOTHING)[0] for n in (30, 90))
  assert many[:30] == few and len({row["prompt"] for row in many}) == 90
  assert [row["tag"] == "dpg" for row in few] == [False, True] * 15
  assert prompts.draw_all(styles, 30, 6, NOTHING)[0] != few


def test_excluded_prompts_are_counted_and_left_out(tmp_path):
  all_of_them, _ = prompts.draw_all(["geneval-style"], 100, 0, NOTHING)
  names = [row["prompt"] for row in all_of_them]
  file = tmp_path / "own.jsonl"
  file.write_text("".join(json.dumps({"prompt": t.upper() + "!"}) + "\n" for t in names[:10]))
  found, passed = prompts.draw_all(["geneval-style"], 90, 0, prompts.Excluded([file]))
  assert passed == 10 and [row["prompt"] for row in found] == names[10:]


@pytest.mark.parametrize(
  "prompt, out",
  [
    ("a photo of a bench", True),
    ("Bench.", True),
    ("an image of the  BENCH", True),
    ("a photo of two benches", False),
    ("a small bench", False),
    ("photo of one two three four five six seven eight, nine", True),
    ("one two three four five six seven nine", False),
  ],
)
def test_what_is_excluded(tmp_path, prompt, out):
  (tmp_path / "a.txt").write_text("a photo of a bench\n")
  (tmp_path / "b.txt").write_text("Zero, one two three four\nfive six seven eight.")
  assert prompts.Excluded([tmp_path]).has(prompt) is out


def test_a_style_that_runs_out_says_so(monkeypatch):
  seven = {"tag": "x"}
  monkeypatch.setitem(prompts.STYLES, "digits", lambda rng, i: seven | {"prompt": str(i % 7)})
  assert len(prompts.draw_all(["digits"], 7, 0, NOTHING)[0]) == 7
  with pytest.raises(UserError, match="digits: only 7 prompts, not 8, are different"):
    prompts.draw_all(["digits"], 8, 0, NOTHING)


@pytest.mark.parametrize(
  "name, text, said",
  [
    ("none.txt", None, "none.txt cannot be read"),
    ("empty.txt", " \n", "empty.txt has no prompts"),
    ("a.jsonl", '{"prompt": "x"}\n{', "line 2 of .*a.jsonl is not JSON"),
    ("b.jsonl", '{"text": "x"}', "line 1 of .*b.jsonl has no prompt"),
    ("c.txt", "fine\n<image> left of a six", "line 2 of .*c.txt has no prompt of words alone"),
  ],
)
def test_a_file_without_prompts_is_named(tmp_path, name, text, said):
  if text is not None:
    (tmp_path / name).write_text(text)
  with pytest.raises(UserError, match=said):
    prompts.read(tmp_path / name)
