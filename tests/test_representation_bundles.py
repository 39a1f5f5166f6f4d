"""Bundles of VQVAE words and of Janus, random networks of the laptop run's sizes, by every verb."""

import importlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import random_tree

from configs.digits import base
from tarjax import bundle, checkpoint, describe, evaluate, generate, saving, self_reflect, tasks
from tarjax import config as configs
from tarjax.config import UserError
from tarjax.data import tokenizer
from tarjax.data.digits import text_documents
from tarjax.evals import digits_scorer
from tarjax.pipeline import TarPipeline
from tarjax.state import TrainState

STAGES = ("vqvae", "hybrid", "mllm_vqvae", "mllm_janus", "mllm_hybrid")
NAMES = ("vqvae", "janus", "hybrid")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """home/as_vqvae and home/as_janus, as the configs of the laptop's twins say."""
  home = tmp_path_factory.mktemp("runs")
  text = tokenizer.build_tokenizer(
    home / "tokenizer", base.TEXT_ROWS - 22, text_documents(count=3000)[::2]
  )
  tokenizer.add_image_tokens(text, home / "tokenizer_tar", base.VQ_CODES)
  tokenizer.add_image_tokens(text, home / "tokenizer_places", 1)
  for number, stage in enumerate(STAGES):
    file = importlib.import_module(f"configs.digits.{stage}").__file__
    config = configs.parse([f"--config={file}:smoke", f"--workdir={home / stage}"])[0]
    task = tasks.make_task(config)
    saver = saving.Saver(home / stage, 1)
    params = random_tree(task.init, number)
    saver.save(1, TrainState(1, params, {"count": np.zeros(())}), {})
    saver.close()
    checkpoint.save_frozen(home / stage, random_tree(task.init_frozen, number))
    (home / stage / "config.json").write_text(json.dumps({"config": configs.plain(config)}))
  for name in NAMES:
    (home / f"as_{name}").mkdir()
    made = Path(base.__file__).with_name(f"bundle_{name}.json").read_text()
    (home / f"as_{name}" / "bundle.json").write_text(made)
  return home


@pytest.fixture(scope="module")
def pipes(home):
  return {name: TarPipeline.load(home / f"as_{name}", batch=4) for name in NAMES}


def noise(n):
  return np.random.default_rng(n).integers(0, 256, (n, 48, 48, 3), np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_request_gives_the_same_picture_in_any_batch(pipes, name):
  """With pictures in some prompts and not in others."""
  pipe = pipes[name]
  shown = list(noise(2))
  prompts = ["a red three", "<image> left of a seven", "two blue ones", "<image> and <image>", "x"]
  images, seeds = [[], shown[:1], [], shown, []], [3, 4, 5, 6, 7]
  found = pipe.generate(prompts, images, seeds=seeds)
  shape = (36, 4) if name == "hybrid" else (36,)
  assert all(d.image.shape == (48, 48, 3) and d.codes.shape == shape for d in found)
  for i in (0, 1, 3):  # none, one and two pictures
    (alone,) = pipe.generate(prompts[i : i + 1], images[i : i + 1], seeds=seeds[i : i + 1])
    np.testing.assert_array_equal(alone.codes, found[i].codes)
    np.testing.assert_allclose(alone.image.astype(int), found[i].image, atol=1)
  (other,) = pipe.generate(prompts[1:2], [[255 - shown[0]]], seeds=[4])
  assert (other.codes != found[1].codes).any()  # the picture in the prompt was read
  if name == "hybrid":
    with pytest.raises(UserError, match="--unconstrained has no sense"):
      pipe.generate(prompts[:1], seeds=[0], constrained=False)
    return
  free = pipe.generate(prompts[:2], images[:2], seeds=seeds[:2], constrained=False)
  assert [d.codes.shape for d in free] == [(36,), (36,)]


def test_words_of_the_vqvae_are_painted_by_its_decoder(pipes):
  pipe, images = pipes["vqvae"], noise(3)
  codes = pipe.encode(images)
  np.testing.assert_array_equal(codes, pipe.encode_vqvae(images))
  drawn = pipe.draw(codes, [0, 1, 2]).astype(int)
  np.testing.assert_allclose(drawn, pipe.reconstruct_vqvae(images), atol=1)


@pytest.mark.parametrize("name", NAMES)
def test_answers_depend_on_the_picture_alone(pipes, name):
  pipe, images = pipes[name], list(noise(3))
  questions = ["What colour is it?", "How many?", "Which are they?"]
  asked = [images[0], images[:2], images[2]]
  found = pipe.describe(asked, questions, max_new=12, temperature=1.0)
  alone = [
    pipe.describe([a], [q], seeds=[i], max_new=12, temperature=1.0)[0]
    for i, (a, q) in enumerate(zip(asked, questions, strict=True))
  ]
  assert alone == found
  other = pipe.describe([255 - images[0]], questions[:1], max_new=12, temperature=1.0)
  assert other != found[:1]


def test_janus_judges_pictures_and_not_ids(pipes):
  pipe, prompts = pipes["janus"], ["a three", "a red seven", "<image> and a six"]
  shown, given = list(noise(3)), [[], [], list(noise(1))]
  found = self_reflect.judge(pipe, shown, prompts, given)
  alone = [self_reflect.judge(pipe, *([x[i]] for x in (shown, prompts, given))) for i in range(3)]
  np.testing.assert_allclose(np.concatenate(alone), found, atol=1e-6)
  assert np.ptp(found) > 1e-4
  with pytest.raises(UserError, match="reads pictures, not ids: .* reencoded"):
    self_reflect.best_of(pipe, prompts[:1], n=2, seeds=[0])
  (best,) = self_reflect.best_of(pipe, prompts[:1], n=2, seeds=[0], feed="reencoded")
  assert best.best == best.p_yes.argmax()


@pytest.mark.parametrize("name", NAMES)
def test_verbs(home, name, tmp_path, capsys, monkeypatch):
  model, picture = str(home / f"as_{name}"), str(tmp_path / "in.png")
  Image.fromarray(noise(1)[0]).save(picture)
  out = ("--out", str(tmp_path / "out.png"))
  ask = ["--model", model, "--prompt", "<image> and a six", "--image", picture, *out]
  assert generate.main(ask) == 0 and Image.open(tmp_path / "out.png").size == (48, 48)
  assert describe.main(["--model", model, "--image", picture, "--max_new", "4"]) == 0
  capsys.readouterr()
  assert generate.main([*ask, "--scale", "2"]) == 2
  assert f"pictures of {name} have no scales: leave out scale=2" in capsys.readouterr().err
  assert generate.main([*ask, "--detokenizer", "dif"]) == 2
  assert "no Dif-DTok" in capsys.readouterr().err
  monkeypatch.setattr(digits_scorer, "Scorer", lambda: digits_scorer)
  monkeypatch.setattr(digits_scorer, "read", lambda image: [], raising=False)
  scores, report = tmp_path / "scores.json", tmp_path / "report.html"
  argv = ["--model", model, "--tasks", "digits", "--count", "12", "--out", str(scores)]
  assert evaluate.main([*argv, "--report", str(report)], time.time()) == 0
  found = json.loads(scores.read_text())
  assert found["settings"]["scale"] is None and found["provenance"]["representation"] == name
  rebuilt = "unitok" if name == "hybrid" else "vqvae"
  assert set(found["reconstruction"]) == {rebuilt, "original"} and "ta_tok" not in found
  assert 0 <= found["t2i"]["overall"] <= 1
  assert ("siglip2" in found["provenance"]["checkpoint"]) == (name == "janus")
  assert report.stat().st_size > 1000


def changed(home, tmp_path, name, **changes):
  """A bundle of `name` with other entries, elsewhere."""
  made = json.loads((home / f"as_{name}" / "bundle.json").read_text())
  made["components"] = {
    part: str((home / f"as_{name}" / run).resolve()) for part, run in made["components"].items()
  }
  for key, value in changes.items():
    group = made
    *groups, last = key.split("__")
    for part in groups:
      group = group[part]
    group[last] = value
  (tmp_path / "bundle.json").write_text(json.dumps(made))
  return tmp_path


@pytest.mark.parametrize(
  "name, change, message",
  [
    ("vqvae", {"representation": "pixels"}, "'pixels' is none of ta_tok, vqvae, janus, hybrid"),
    ("vqvae", {"representation": "janus"}, "the bundle is of janus, its MLLM of vqvae"),
    ("janus", {"representation": "vqvae"}, "the bundle is of vqvae, its MLLM of janus"),
    ("vqvae", {"preprocessing__drawn": 48}, "side that is drawn are 48, the side of its codes 24"),
    ("hybrid", {"components__unitok": "mllm_janus"}, "component 'unitok' .* is missing"),
    ("vqvae", {"components__vqvae": "none"}, "component 'vqvae' of .* is missing"),
  ],
)
def test_bundles_whose_parts_do_not_fit(home, tmp_path, name, change, message):
  folder = changed(home, tmp_path, name, **change)
  with pytest.raises(UserError, match=message):
    TarPipeline.load(folder)


def test_a_tokenizer_with_other_words(home, tmp_path):
  tokenizer.add_image_tokens(home / "tokenizer", tmp_path / "other", 64)
  folder = changed(home, tmp_path, "janus", components__tokenizer=str(tmp_path / "other"))
  with pytest.raises(UserError, match="visual words are 64, the VQVAE's codes 1024"):
    TarPipeline.load(folder)


def test_components_of_each_representation(tmp_path):
  """Those that a bundle needs, by name."""
  for name, parts in bundle.PARTS.items():
    for missing in parts:
      there = {part: "." for part in ("tokenizer", "mllm", *parts) if part != missing}
      (tmp_path / "bundle.json").write_text(
        json.dumps({"representation": name, "components": there})
      )
      with pytest.raises(UserError, match=f"names no component '{missing}'"):
        bundle.read(tmp_path)
