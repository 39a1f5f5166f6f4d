"""GenEval: its rules on made-up objects, and the process with tiny networks."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_clip import make_clip

from tarjax.evals import geneval, judges
from tarjax.evals import geneval_rules as rules
from tarjax.evals.geneval_rules import Thing


def thing(x, y, size=10, score=0.95):
  return Thing((x, y, x + size, y + size), score)


def judged(found, tag="two_object", colour="red", **wanted):
  def paint(name, things):
    return [colour] * len(things)

  return rules.judge(rules.keep(found, tag), wanted, paint)


def clause(name, count=1, **more):
  return {"class": name, "count": count} | more


def test_every_clause_must_hold():
  found = {"cat": [thing(0, 0)], "dog": [thing(50, 0), thing(80, 0, score=0.5)]}
  assert judged(found, include=[clause("cat"), clause("dog")]) == (True, "")
  assert judged(found, include=[clause("cat"), clause("dog", 2)])[0]
  right, reason = judged(found, include=[clause("cat", 2), clause("bird")])
  assert not right
  assert reason == "expected cat>=2, found 1\nexpected bird>=1, found 0"


def test_counting_wants_surer_objects_and_no_more():
  found = {"dog": [thing(0, 0), thing(50, 0), thing(80, 0, score=0.85)]}
  wanted = {"include": [clause("dog", 2)], "exclude": [clause("dog", 3)]}
  assert judged(found, "counting", **wanted)[0]
  assert judged(found, "colors", **wanted) == (False, "expected dog<3, found 3")
  assert judged({"dog": [thing(0, 0, score=0.3)]}, include=[clause("dog")])[0] is False
  many = {"dog": [thing(k, 0) for k in range(40)]}
  assert len(rules.keep(many, "counting")["dog"]) == 16


def test_only_the_surest_objects_are_painted():
  found = {"cat": [thing(0, 0, score=0.4), thing(50, 0, score=0.8)]}

  def paint(name, things):
    return ["red" if t.score > 0.5 else "blue" for t in things]

  kept = rules.keep(found, "colors")
  assert rules.judge(kept, {"include": [clause("cat", color="red")]}, paint)[0]
  right, reason = rules.judge(kept, {"include": [clause("cat", color="blue")]}, paint)
  assert not right and reason == "expected blue cat>=1, found red"


@pytest.mark.parametrize(
  "x, y, sides",
  [
    (-30, 0, ["left of"]),
    (30, 0, ["right of"]),
    (0, -30, ["above"]),
    (0, 30, ["below"]),
    (30, 30, ["right of", "below"]),
    (30, 9, ["right of"]),
    (2, 0, []),  # a tenth of the summed sizes
    (2.5, 0, []),  # only a fifth of the way is beyond it
    (0, 0, []),
  ],
)
def test_relations(x, y, sides):
  assert rules.relations(thing(x, y), thing(0, 0)) == sides


def test_a_position_is_to_an_earlier_clause_that_holds():
  found = {"cat": [thing(0, 0)], "dog": [thing(50, 0)]}
  place = {"include": [clause("cat"), clause("dog", position=["right of", 0])]}
  assert judged(found, "position", **place)[0]
  place["include"][1]["position"] = ["left of", 0]
  assert judged(found, **place)[1] == "expected dog left of target, found right of target"
  place["include"][0]["color"] = "blue"
  assert "no target for dog to be left of" in judged(found, **place)[1]


def test_the_overall_score_is_the_mean_of_the_tags():
  rows = [{"tag": "counting", "prompt": "a", "correct": k == 0} for k in range(4)]
  rows += [{"tag": "colors", "prompt": "b", "correct": True}]
  rows += [{"tag": "colors", "prompt": "c", "correct": False}]
  found = {name: score["value"] for name, score in rules.summary(rows).items()}
  assert found["counting"] == 0.25 and found["colors"] == 0.5 and found["overall"] == 0.375
  assert found["pictures_right"] == pytest.approx(2 / 6)
  assert found["prompts_right"] == pytest.approx(2 / 3)


WANTED = {
  "tag": "colors",
  "prompt": "a photo of a red cat",
  "include": [clause("cat", color="red")],
}


def write_pictures(folder, prompts=2, each=2):
  rng = np.random.default_rng(0)
  for i in range(prompts):
    inside = folder / f"{i:05d}"
    (inside / "samples").mkdir(parents=True)
    (inside / "metadata.jsonl").write_text(json.dumps(WANTED | {"prompt": f"cat {i}"}))
    for j in range(each):
      pixels = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
      Image.fromarray(pixels).save(inside / "samples" / f"{j}.png")
  return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
  return make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory):
  """A tiny random Mask2Former of 80 classes."""
  folder = tmp_path_factory.mktemp("detector")
  backbone = transformers.SwinConfig(
    embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2
  )
  backbone.out_features = ["stage1", "stage2", "stage3", "stage4"]
  config = transformers.Mask2FormerConfig(
    backbone_config=backbone,
    num_labels=80,
    num_queries=4,
    hidden_dim=32,
    feature_size=32,
    mask_feature_size=32,
    encoder_feedforward_dim=16,
    dim_feedforward=16,
    encoder_layers=1,
    decoder_layers=2,
    num_attention_heads=2,
  )
  torch.manual_seed(0)
  transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
  return folder


def test_the_detector_gives_boxes_around_its_masks(detector_folder, monkeypatch):
  monkeypatch.setattr(judges, "SHORT", 64)
  detector = judges.Detector(detector_folder)
  pixels, mask, inner = detector._prepare(Image.new("RGB", (90, 60), (124, 116, 104)))
  assert inner == (64, 96) and pixels.shape == (1, 3, 64, 96) and mask.all()
  assert abs(pixels).max() < 0.02  # the mean colour
  rng = np.random.default_rng(0)
  found = detector.find(Image.fromarray(rng.integers(0, 256, (60, 90, 3)).astype(np.uint8)))
  assert found and set(found) <= set(judges.NAMES) and len(set(judges.NAMES)) == 80
  for one in (t for things in found.values() for t in things):
    x0, y0, x1, y1 = (int(v) for v in one.box)
    assert one.mask.shape == (60, 90) and one.mask[y0:y1, x0:x1].sum() == one.mask.sum()
    assert one.mask[y0].any() and one.mask[:, x1 - 1].any() and 0 < one.score < 1


def test_scores_are_class_times_mask(detector_folder, monkeypatch):
  """One query that is sure of a cat in the left half, and one that is sure of nothing."""
  detector = judges.Detector(detector_folder)

  class Net:
    def __call__(self, pixel_values, pixel_mask):
      logits = torch.full((1, 2, 81), -20.0)
      logits[0, 0, judges.NAMES.index("cat")] = logits[0, 1, 80] = 20.0
      masks = torch.full((1, 2, pixel_values.shape[2] // 4, pixel_values.shape[3] // 4), -3.0)
      masks[..., : masks.shape[-1] // 2] = 2.0
      return transformers.utils.ModelOutput(class_queries_logits=logits, masks_queries_logits=masks)

  monkeypatch.setattr(detector, "net", Net())
  (cat, *_), *_ = [detector.find(Image.new("RGB", (64, 64)))["cat"]]
  assert cat.box[0] == cat.box[1] == 0 and cat.box[3] == 64 and abs(cat.box[2] - 32) <= 1
  assert cat.score == pytest.approx(1 / (1 + np.exp(-2)), abs=0.03)


def test_clip_sees_the_object_alone(clip_folder):
  """CLIP's answer is that of transformers' own pipeline on the greyed crop."""
  clip = judges.Clip(clip_folder)
  rng = np.random.default_rng(1)
  image = Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype(np.uint8))
  mask = np.zeros((40, 50), bool)
  mask[5:30, 10:45] = True
  seen = clip.paint(image, "cat", [Thing((10, 5, 45, 30), 0.9, mask)] * 2)
  grey = np.asarray(image).copy()
  grey[~mask] = 0x99
  net = transformers.CLIPModel.from_pretrained(clip_folder).eval()
  pixels = clip.pixels(images=[Image.fromarray(grey[5:30, 10:45])], return_tensors="pt")
  means = []
  for colour in rules.COLOURS:
    texts = [f"a photo of a {colour} cat", f"a photo of a {colour}-colored cat"]
    asked = clip.words([*texts, f"a photo of a {colour} object"], padding=True, return_tensors="pt")
    with torch.no_grad():
      out = net(**asked, **pixels)
    means.append(out.text_embeds.mean(0) / out.text_embeds.mean(0).norm())
  best = rules.COLOURS[int((torch.stack(means) @ out.image_embeds[0]).argmax())]
  assert seen == [best, best]
  with torch.no_grad():
    asked = clip.words(["red cat"], return_tensors="pt")
    out = net(**asked, **clip.pixels(images=[image], return_tensors="pt"))
  expected = max(100 * float((out.image_embeds * out.text_embeds).sum()), 0)
  assert clip.similarity(image, "red cat") == pytest.approx(expected, abs=1e-4)


class Judge:
  """Stands for both networks: a red cat in each picture whose number is even."""

  def __init__(self, folder):
    self.seen = 0

  def find(self, image):
    self.seen += 1
    return {"cat": [thing(0, 0)]} if self.seen % 2 else {}

  def paint(self, image, name, things):
    return ["red"] * len(things)

  def similarity(self, image, text):
    return 25.0


def call(tmp_path, *more):
  known = ["--detector", "d", "--clip", "c", "--out", str(tmp_path / "out.json")]
  return geneval.main([str(tmp_path / "pictures"), *known, *more])


def test_pictures_are_judged_once_and_resumed(tmp_path, monkeypatch):
  monkeypatch.setattr(judges, "Detector", Judge)
  monkeypatch.setattr(judges, "Clip", Judge)
  write_pictures(tmp_path / "pictures")
  assert call(tmp_path) == 0
  found = json.loads((tmp_path / "out.json").read_text())
  assert found["pictures"] == 4 and found["prompts"] == 2
  assert found["scores"]["overall"]["value"] == 0.5
  assert found["scores"]["clip_score"]["value"] == 25
  path = tmp_path / "out.rows.jsonl"
  text = path.read_text()
  assert json.loads(text.splitlines()[1])["filename"] == "00000/samples/1.png"
  path.write_text(text[: len(text) * 2 // 3])  # killed in the third line
  made = []
  monkeypatch.setattr(judges, "Detector", lambda folder: made.append(Judge(folder)) or made[0])
  assert call(tmp_path, "--resume") == 0
  assert made[0].seen == 2 and path.read_text() == text
  rows = str(tmp_path / "again.json")
  assert geneval.main(["--rows", str(path), "--out", rows]) == 0
  again = json.loads((tmp_path / "again.json").read_text())
  assert again["scores"] == found["scores"]


def no_folder(root):
  (root / "pictures").rename(root / "elsewhere")


def no_pictures(root):
  for file in root.glob("pictures/*/samples/*"):
    file.unlink()


def no_metadata(root):
  (root / "pictures/00001/metadata.jsonl").unlink()


def other_tag(root):
  (root / "pictures/00000/metadata.jsonl").write_text('{"tag": "size", "prompt": "a"}')


def other_class(root):
  wanted = WANTED | {"include": [clause("unicorn")]}
  (root / "pictures/00000/metadata.jsonl").write_text(json.dumps(wanted))


def half_picture(root):
  path = root / "pictures/00000/samples/0.png"
  path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
  "spoil, said",
  [
    (no_folder, "pictures is not a folder"),
    (no_pictures, "has no pictures like 00000/samples/0.png"),
    (no_metadata, "00001/metadata.jsonl cannot be read"),
    (other_tag, "line 1 of"),
    (other_class, "the detector knows no 'unicorn'"),
    (half_picture, "0.png is not a whole picture"),
  ],
)
def test_what_is_wrong_is_named(tmp_path, capsys, monkeypatch, spoil, said):
  monkeypatch.setattr(judges, "Detector", Judge)
  monkeypatch.setattr(judges, "Clip", Judge)
  write_pictures(tmp_path / "pictures")
  spoil(tmp_path)
  assert call(tmp_path) == 2
  err = capsys.readouterr().err
  assert said in err and err.count("\n") == 1


def test_folders_that_hold_no_networks(tmp_path, capsys):
  write_pictures(tmp_path / "pictures")
  assert call(tmp_path) == 2
  assert "d is not a folder with a Mask2Former" in capsys.readouterr().err


def test_the_verb_with_tiny_networks(tmp_path, detector_folder, clip_folder):
  write_pictures(tmp_path / "pictures", 1, 1)
  argv = [str(tmp_path / "pictures"), "--detector", str(detector_folder)]
  argv += ["--clip", str(clip_folder), "--out", str(tmp_path / "out.json")]
  assert geneval.main(argv) == 0
  found = json.loads((tmp_path / "out.json").read_text())
  assert found["pictures"] == 1 and set(found["scores"]) >= {"overall", "colors", "clip_score"}
