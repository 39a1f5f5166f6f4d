"""CLIP score against transformers' own forward pass, on both layouts, and going on after a kill."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_clip import make_clip

from tarjax.evals import clip_score, dpg, judges

PROMPTS = ("zebra", "cat 1", "hello")  # of which the second is far from any picture


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
  return make_clip(tmp_path_factory.mktemp("clip"))


def noise(seed, y=20, x=30):
  return np.random.default_rng(seed).integers(0, 256, (y, x, 3), np.uint8)


@pytest.fixture
def geneval_folder(tmp_path):
  """Two prompts with ten and two pictures."""
  for i, each in enumerate((11, 2)):
    inside = tmp_path / "geneval" / f"{i:05d}"
    (inside / "samples").mkdir(parents=True)
    (inside / "metadata.jsonl").write_text(json.dumps({"prompt": PROMPTS[i]}) + "\n")
    for k in range(each):
      Image.fromarray(noise(100 * i + k)).save(inside / "samples" / f"{k}.png")
  return tmp_path / "geneval"


def reference(folder, images, texts):
  """100 max(cos, 0) of each pair by transformers' CLIPModel, one pair at a time."""
  net = transformers.CLIPModel.from_pretrained(folder).eval()
  words = transformers.CLIPTokenizerFast.from_pretrained(folder)
  pixels = transformers.CLIPImageProcessor.from_pretrained(folder)
  found = []
  for image, text in zip(images, texts, strict=True):
    asked = words([text], return_tensors="pt")
    seen = pixels(images=[Image.fromarray(image)], return_tensors="pt")
    with torch.no_grad():
      out = net(**asked, **seen)
    cosine = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
    found.append(max(100 * float(cosine[0]), 0.0))
  return found


def call(folder, clip, tmp_path, *more):
  argv = [str(folder), "--clip", str(clip), "--out", str(tmp_path / "clip.json"), *more]
  code = clip_score.main(argv)
  return code, json.loads((tmp_path / "clip.json").read_text()) if code == 0 else None


def test_pictures_of_geneval(geneval_folder, clip_folder, tmp_path):
  """In batches of 4, whose prompts differ in length."""
  code, found = call(geneval_folder, clip_folder, tmp_path, "--batch", "4")
  images = [noise(k) for k in range(11)] + [noise(100), noise(101)]
  wanted = reference(clip_folder, images, [PROMPTS[0]] * 11 + [PROMPTS[1]] * 2)
  assert code == 0 and found and (found["pictures"], found["prompts"]) == (13, 2)
  score = found["scores"]["clip_score"]
  assert (
    score["value"] == pytest.approx(np.mean(wanted), abs=1e-3)
    and max(wanted) > 20
    and wanted[-1] == 0
  )
  assert score["low"] <= score["value"] <= score["high"]
  lines = (tmp_path / "clip.rows.jsonl").read_text().splitlines()[1:]
  np.testing.assert_allclose([float(json.loads(x)["answer"]) for x in lines], wanted, atol=1e-3)


def test_tiles_of_dpg(clip_folder, tmp_path):
  (tmp_path / "prompts").mkdir()
  (tmp_path / "sheets").mkdir()
  for name in ("a", "b"):
    (tmp_path / "prompts" / f"{name}.txt").write_text(PROMPTS[2])
  tiles = [noise(k, 24, 24) for k in range(4)]
  Image.fromarray(dpg.sheet(tiles)).save(tmp_path / "sheets" / "b.png")
  for i, tile in enumerate(tiles):
    np.testing.assert_array_equal(dpg.tile(dpg.sheet(tiles), i), tile)
  more = ("--prompts", str(tmp_path / "prompts"))
  code, found = call(tmp_path / "sheets", clip_folder, tmp_path, *more)
  wanted = reference(clip_folder, tiles, [PROMPTS[2]] * 4)
  assert code == 0 and found and (found["pictures"], found["prompts"]) == (4, 1)
  value = found["scores"]["clip_score"]["value"]
  assert value == pytest.approx(np.mean(wanted), abs=1e-3) and value > 0


class Counter:
  """Stands for CLIP: a picture's score is its number."""

  def __init__(self, folder):
    self.seen = 0

  def similarities(self, images, texts):
    self.seen += len(images)
    return [float(np.asarray(image)[0, 0, 0]) for image in images]


def test_scores_are_kept(geneval_folder, tmp_path, monkeypatch):
  made = []
  monkeypatch.setattr(judges, "Clip", lambda folder: made.append(Counter(folder)) or made[-1])
  _, first = call(geneval_folder, "c", tmp_path, "--batch", "3")
  rows = tmp_path / "clip.rows.jsonl"
  text = rows.read_text()
  rows.write_text(text[: len(text) * 2 // 3])
  _, second = call(geneval_folder, "c", tmp_path, "--batch", "3", "--resume")
  assert made[0].seen == 13 and 0 < made[1].seen < 13 and first == second
  assert rows.read_text() == text
  assert call(geneval_folder, "other", tmp_path, "--resume")[0] == 2


@pytest.mark.parametrize(
  "spoil, said",
  [
    (lambda root: (root / "00001/metadata.jsonl").unlink(), "00001/metadata.jsonl names no prompt"),
    (lambda root: (root / "00000/samples/0.png").write_bytes(b"P"), "0.png is not a whole picture"),
    (lambda root: [f.unlink() for f in root.rglob("*.png")], "has no pictures like 00000/samples"),
    (lambda root: root.rename(root.parent / "gone"), "geneval is not a folder"),
  ],
)
def test_what_is_wrong_is_named(geneval_folder, tmp_path, capsys, monkeypatch, spoil, said):
  monkeypatch.setattr(judges, "Clip", Counter)
  spoil(geneval_folder)
  assert call(geneval_folder, "c", tmp_path)[0] == 2
  err = capsys.readouterr().err
  assert said in err and err.count("\n") == 1


def test_a_folder_without_a_clip(geneval_folder, tmp_path, capsys):
  assert call(geneval_folder, tmp_path / "nowhere", tmp_path)[0] == 2
  assert "nowhere is not a folder with a CLIPModel" in capsys.readouterr().err
