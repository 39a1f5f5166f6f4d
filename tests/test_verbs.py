"""The two verbs of a bundle, fed rubbish: one sentence on stderr, exit code 2, no traceback."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle
from PIL import Image

from configs.digits import base
from tarjax import describe, generate
from tarjax.bundle import COMPONENTS


@pytest.fixture
def picture(tmp_path):
  path = tmp_path / "in.png"
  Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(path)
  return str(path)


def bundle(tmp_path, components):
  """A folder with bundle.json and empty component folders."""
  for name in components:
    (tmp_path / name).mkdir()
  names = {name: name for name in components}
  (tmp_path / "bundle.json").write_text(json.dumps({"components": names}))
  return str(tmp_path)


def refused(capsys, main, *argv):
  """The one line that a call with these arguments prints on stderr."""
  assert main(list(argv)) == 2
  out, err = capsys.readouterr()
  assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in out + err
  return err


@pytest.mark.parametrize(
  "change, said",
  [
    ({"--prompt": "  "}, "prompt is empty"),
    ({"--scale": "4"}, "scale must be 1, 2 or 3, not 4"),
    ({"--num": "0"}, "--num"),
    ({"--seed": "-1"}, "--seed"),
    ({"--detokenizer": "gan"}, "--detokenizer must be ar or dif, not gan"),
    ({"--image": "none.png"}, "none.png"),
    ({"--out": "nowhere/out.png"}, "nowhere"),
    ({"--out": "out.xyz"}, ".xyz"),
    ({}, "no bundle.json"),
  ],
)
def test_generate_refuses(tmp_path, capsys, change, said):
  given = {"--model": str(tmp_path), "--prompt": "a three", "--out": str(tmp_path / "o.png")}
  argv = [word for pair in (given | change).items() for word in pair]
  assert said in refused(capsys, generate.main, *argv)
  assert not (tmp_path / "o.png").exists()


def test_describe_refuses(tmp_path, capsys, picture):
  model = ("--model", str(tmp_path))
  text = tmp_path / "text.png"
  text.write_text("not a picture")
  cut = tmp_path / "cut.png"
  cut.write_bytes((tmp_path / "in.png").read_bytes()[:40])
  assert "none.png" in refused(capsys, describe.main, *model, "--image", "none.png")
  assert "text.png" in refused(capsys, describe.main, *model, "--image", str(text))
  assert "cut.png" in refused(capsys, describe.main, *model, "--image", str(cut))
  question = refused(capsys, describe.main, *model, "--image", picture, "--question", " ")
  assert "question is empty" in question
  assert "scale" in refused(capsys, describe.main, *model, "--image", picture, "--scale", "0")


@pytest.mark.parametrize("missing", COMPONENTS)
def test_bundle_without_a_component(tmp_path, capsys, picture, missing):
  model = bundle(tmp_path, [name for name in COMPONENTS if name != missing])
  said = refused(capsys, describe.main, "--model", model, "--image", picture)
  assert repr(missing) in said


def test_damaged_bundle(tmp_path, capsys, picture):
  (tmp_path / "bundle.json").write_text("{")
  said = refused(capsys, describe.main, "--model", str(tmp_path), "--image", picture)
  assert "damaged" in said


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  return tiny_bundle.make_bundle(tmp_path_factory.mktemp("whole"))


def changed(whole: Path, home: Path, run: str, change) -> str:
  """The bundle with another config in one of its runs; its other folders are links."""
  for path in whole.iterdir():
    if path.name != run:
      (home / path.name).symlink_to(path)
  shutil.copytree(whole / run, home / run)
  file = home / run / "config.json"
  made = json.loads(file.read_text())
  change(made["config"])
  file.write_text(json.dumps(made))
  return str(home)


def wider(config):
  config["model"]["mlp"] *= 2


LLM = base.LLM
DOWN = [re.escape(str((LLM["depth"], n * LLM["mlp"], LLM["width"]))) for n in (1, 2)]


@pytest.mark.parametrize(
  "run, change, said",
  [
    ("sft", wider, rf"'mllm' does not fit its config.json: .* {DOWN[0]} .* {DOWN[1]}"),
    ("ar_dtok", wider, "'ar_dtok' does not fit its config.json"),
    ("ta_tok", lambda c: c["model"]["decoder"].update(depth=3), "'ta_tok' .* decoder"),
    ("vqvae", lambda c: c["model"].update(blocks=2), "'vqvae' has no "),
    ("vqvae", lambda c: c.update(task="dc_ae"), "'vqvae' is a run of 'dc_ae', not of 'vqvae'"),
    ("ar_dtok", lambda c: c["model"].update(heids=2), "'ar_dtok': .*heids"),
  ],
)
def test_a_checkpoint_of_another_size(tmp_path, capsys, whole, run, change, said):
  model, out = changed(whole, tmp_path, run, change), str(tmp_path / "o.png")
  given = "--model", model, "--prompt", "a three", "--out", out
  assert re.search(said, refused(capsys, generate.main, *given))


@pytest.mark.parametrize("setting", ["--temperature=nan", "--temperature=-1", "--top_p=0"])
def test_sampling_out_of_range(tmp_path, capsys, whole, setting):
  given = f"--model={whole}", "--prompt=a three", f"--out={tmp_path / 'o.png'}"
  assert setting[2:] in refused(capsys, generate.main, *given, setting)
