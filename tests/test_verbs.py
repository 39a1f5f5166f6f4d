"""The two verbs of a bundle, fed rubbish: one sentence on stderr, exit code 2, no traceback."""

import json

import numpy as np
import pytest
from PIL import Image

from tarjax import describe, generate
from tarjax.pipeline import COMPONENTS


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
