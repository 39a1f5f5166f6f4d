"""Pictures for GenEval and DPG-Bench: the same in any batch, and after a kill."""

import json

import numpy as np
import pytest
from PIL import Image

from tarjax.config import UserError
from tarjax.evals import drawing
from tarjax.pipeline import Drawn

MADE_BY = {"sampler": {"scale": 1, "top_p": 0.95}}


@pytest.fixture
def data(tmp_path):
  folder = tmp_path / "data"
  (folder / "geneval").mkdir(parents=True)
  lines = [
    {"tag": "counting", "prompt": f"{n} cats", "include": [{"class": "cat", "count": n}]}
    for n in range(1, 6)
  ]
  path = folder / "geneval" / "evaluation_metadata.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  (folder / "dpg_bench" / "prompts").mkdir(parents=True)
  for name in ("p1", "p2"):
    (folder / "dpg_bench" / "prompts" / f"{name}.txt").write_text(f"prompt {name}")
  return folder


class Model:
  """Stands for `TarPipeline.generate`: noise of the seed; dies after `lives` calls."""

  def __init__(self, lives=1000):
    self.lives, self.asked = lives, []

  def generate(self, prompts, *, seeds):
    self.lives -= 1
    if self.lives < 0:
      raise KeyboardInterrupt
    self.asked += prompts
    images = [np.random.default_rng(s).integers(0, 256, (8, 8, 3), np.uint8) for s in seeds]
    return [Drawn(image, np.zeros(1, np.int32)) for image in images]


def read(folder):
  files = sorted(f for f in folder.rglob("*") if f.is_file())
  return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def drawn(data, folder, model, batch=8, count=None, name="geneval"):
  jobs = drawing.JOBS[name](data, folder)[:count]
  drawing.draw(jobs, model.generate, batch, lambda text: None)
  return read(folder)


def test_the_official_folders(data, tmp_path):
  folder = tmp_path / "out"
  found = drawn(data, folder, Model())
  assert len(found) == 5 * 5 and "00004/samples/3.png" in found
  wanted = json.loads(found["00002/metadata.jsonl"])
  assert wanted["prompt"] == "3 cats" and wanted["include"] == [{"class": "cat", "count": 3}]
  assert len(set(found.values())) == 25


def test_pictures_depend_on_neither_batch_nor_company(data, tmp_path):
  whole = drawn(data, tmp_path / "a", Model(), batch=64)
  assert drawn(data, tmp_path / "b", Model(), batch=1) == whole
  few = drawn(data, tmp_path / "c", Model(), count=2)
  assert few.items() < whole.items() and len(few) == 10


def test_a_killed_drawing_goes_on(data, tmp_path):
  whole = drawn(data, tmp_path / "a", Model())
  with pytest.raises(KeyboardInterrupt):
    drawn(data, tmp_path / "b", Model(lives=1))
  (tmp_path / "b/00001/samples/2.png").unlink()  # as if killed between two pictures of a prompt
  second = Model()
  assert drawn(data, tmp_path / "b", second) == whole
  assert set(second.asked) == {"2 cats", "3 cats", "4 cats", "5 cats"}


def test_sheets_of_four(data, tmp_path):
  (tmp_path / "out").mkdir()
  found = drawn(data, tmp_path / "out", Model(), name="dpg")
  assert list(found) == ["p1.png", "p2.png"]
  assert Image.open(tmp_path / "out/p1.png").size == (16, 16)


def test_a_folder_is_claimed_once(tmp_path):
  folder = tmp_path / "out"
  drawing.claim(folder, MADE_BY, resume=False)
  drawing.claim(folder, MADE_BY, resume=True)
  with pytest.raises(UserError, match="is there already: give --resume"):
    drawing.claim(folder, MADE_BY, resume=False)
  with pytest.raises(UserError, match="cannot be resumed: sampler.top_p was 0.95, and is 1.0"):
    drawing.claim(folder, {"sampler": {"scale": 1, "top_p": 1.0}}, resume=True)
  (folder / drawing.MADE_BY).write_text("{")
  with pytest.raises(UserError, match="made_by.json is damaged"):
    drawing.claim(folder, MADE_BY, resume=True)
  (folder / drawing.MADE_BY).rename(folder / "other.txt")
  with pytest.raises(UserError, match="it is no folder of ours"):
    drawing.claim(folder, MADE_BY, resume=True)


def test_missing_prompts_are_named(tmp_path):
  for name, said in (
    ("geneval", "evaluation_metadata.jsonl cannot be read"),
    ("dpg", "no prompts"),
  ):
    with pytest.raises(UserError, match=said):
      drawing.JOBS[name](tmp_path, tmp_path / "out")
