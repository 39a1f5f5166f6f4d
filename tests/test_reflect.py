"""The builder of judgement data: resumed after a kill, balanced, read by the encoder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle
from chat_server import say, serve
from PIL import Image

from tarjax import encode, reflect
from tarjax.config import UserError
from tarjax.data import sources
from tarjax.data.scenes import render, stream
from tarjax.evals import digits_scorer, endpoint, judgements, prompts
from tarjax.pipeline import Drawn, TarPipeline


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(endpoint, "WAIT", 0.001)
  monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def folder(tmp_path):
  """Pictures that another generator made: 6 prompts of two kinds, 4 each, some as JPEG."""
  rng = np.random.default_rng(0)
  for number in range(6):
    inside = tmp_path / "pictures" / f"{number:05d}"
    (inside / "samples").mkdir(parents=True)
    row = {"tag": ("colors", "counting")[number % 2], "prompt": f"prompt {number}"}
    (inside / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    for k in range(4):
      pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
      Image.fromarray(pixels).save(inside / "samples" / f"{k:04d}.{'jpg' if k == 3 else 'png'}")
  return tmp_path / "pictures"


def call(*argv, **options):
  words = [part for key, value in options.items() for part in (f"--{key}", str(value))]
  return reflect.main([*map(str, argv), *words])


def read(out):
  found = sources.Records(out / "data")
  return [found[i] for i in range(len(found))], json.loads((out / "summary.json").read_text())


def parity(request):
  """An opinion on a picture that anybody can compute again."""
  return sum(request["picture"]) % 3 == 0


def ask(folder, url, out, **more):
  more = {"judge": "endpoint", "endpoint": url, "judge_model": "j", "parallel": 2} | more
  return call(pictures=folder, out=out, **more)


def test_an_endpoint_judges_pictures_that_others_made(folder, tmp_path):
  with serve(lambda n, r: (200, say("Yes." if parity(r) else "no"))) as (url, seen):
    assert ask(folder, url, tmp_path / "out") == 0
  assert {r["mime"] for r in seen} == {"image/png", "image/jpeg"} and len(seen) == 24
  found, summary = read(tmp_path / "out")
  truth = {}
  for file in folder.glob("*/samples/*"):
    truth[str(file.relative_to(folder))] = sum(file.read_bytes()) % 3 == 0
  counts = {}
  for record in found:
    name = record["id"].removeprefix("reflect/")
    number = int(name.split("/")[0])
    question = f'Does this image match the prompt "prompt {number}"? Answer yes or no.'
    answer = "Yes" if truth[name] else "No"
    assert record["conversations"] == [
      {"from": "human", "value": f"<image>\n{question}"},
      {"from": "gpt", "value": answer},
    ]
    assert (record["source"], record["task"]) == ("reflect", "selfreflect")
    np.testing.assert_array_equal(record["images"][0], np.asarray(Image.open(folder / name)))
    key = (number % 2, answer)
    counts[key] = counts.get(key, 0) + 1
  for kind in (0, 1):
    yes = sum(v for k, v in truth.items() if int(k.split("/")[0]) % 2 == kind)
    assert counts[kind, "Yes"] == counts[kind, "No"] == min(yes, 12 - yes)
  assert summary["kept"] == len(found) == len({r["id"] for r in found})
  assert summary["judged"] == {"yes": sum(truth.values()), "no": 24 - sum(truth.values())} | {
    "neither": 0
  }
  assert summary["judge"] == "j" and summary["prompts"] == 6 and summary["excluded"] == 0


def test_a_killed_build_asks_nothing_twice(folder, tmp_path, capsys):
  """The endpoint stops after eleven answers, and the file is cut within a line, as by a kill."""

  def dies(number, request):
    return (200, say("Yes" if parity(request) else "No")) if number < 11 else (401, b"no credit")

  with serve(dies) as (url, first):
    assert ask(folder, url, tmp_path / "out") == 2
  assert " is not judged: " in (err := capsys.readouterr().err) and "no credit" in err
  assert err.count("\n") == 1 and not (tmp_path / "out/data").exists()
  kept = tmp_path / "out/judgements.jsonl"
  lines = kept.read_text().splitlines(keepends=True)
  assert 2 <= len(lines) - 1 <= 11  # answers on their way when the first refusal came are lost
  kept.write_text("".join(lines)[:-9])  # the last answer is lost
  with serve(lambda n, r: (200, say("Yes" if parity(r) else "No"))) as (url, second):
    assert ask(folder, url, tmp_path / "out") == 0
  assert len(second) == 24 - (len(lines) - 2)
  with serve(lambda n, r: (500, b"")) as (url, third):
    assert ask(folder, url, tmp_path / "out") == 0
  assert not third
  with serve(lambda n, r: (200, say("Yes" if parity(r) else "No"))) as (url, _):
    assert ask(folder, url, tmp_path / "whole") == 0
  whole, resumed = read(tmp_path / "whole"), read(tmp_path / "out")
  assert [r["id"] for r in whole[0]] == [r["id"] for r in resumed[0]] and whole[1] == resumed[1]


def test_malformed_answers_are_counted_not_guessed(folder, tmp_path):
  answers = ["Yes", "no", "maybe", None, "Yes or no", "No."]

  def reply(number, request):
    return 200, say(answers[number % 6]) if number % 6 != 2 else b"<html>Yes</html>"

  with serve(reply) as (url, seen):
    assert ask(folder, url, tmp_path / "out", parallel=1) == 0
    assert ask(folder, url, tmp_path / "out", parallel=1) == 0
  assert len(seen) == 24
  assert read(tmp_path / "out")[1]["judged"] == {"yes": 4, "no": 8, "neither": 12}


def test_a_damaged_picture_is_not_shown(folder, tmp_path):
  (folder / "00000/samples/0000.png").write_bytes(b"\x89PNG, once")
  with serve(lambda n, r: (200, say("Yes" if parity(r) else "No"))) as (url, seen):
    assert ask(folder, url, tmp_path / "out") == 0
  found, summary = read(tmp_path / "out")
  assert len(seen) == 23 and summary["judged"]["neither"] == 1
  assert "reflect/00000/samples/0000.png" not in {r["id"] for r in found}


def test_another_judge_does_not_go_on(folder, tmp_path, capsys):
  with serve(lambda n, r: (200, say("Yes" if parity(r) else "No"))) as (url, _):
    assert ask(folder, url, tmp_path / "out") == 0
    assert ask(folder, url, tmp_path / "out", judge_model="k") == 2
  assert "cannot be resumed: judge was j, and is k" in capsys.readouterr().err


def test_verdicts_of_genevals_judge(folder, tmp_path, capsys):
  names = sorted(folder.glob("*/samples/*"))
  rows = [
    {
      "filename": f"elsewhere/{file.relative_to(folder)}",
      "tag": "colors",
      "prompt": f"prompt {int(file.parts[-3])}",
      "correct": i % 3 == 0,
    }
    for i, file in enumerate(names[:20])
  ]
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert call(pictures=folder, judge="rules", rows=path, out=tmp_path / "out") == 0
  found, summary = read(tmp_path / "out")
  assert summary["judged"] == {"yes": 7, "no": 13, "neither": 4} and summary["kept"] == 14
  right = {str(f.relative_to(folder)) for i, f in enumerate(names[:20]) if i % 3 == 0}
  for record in found:
    yes = record["conversations"][1]["value"] == "Yes"
    assert yes == (record["id"].removeprefix("reflect/") in right)
  rows[3]["prompt"] = "prompt 5"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert call(pictures=folder, judge="rules", rows=path, out=tmp_path / "out") == 2
  assert "00000/samples/0003.jpg for 'prompt 5', not 'prompt 0'" in capsys.readouterr().err


def test_excluded_prompts_of_others_are_passed_over(folder, tmp_path):
  (tmp_path / "benchmark.txt").write_text("Prompt 0.\nprompt 3\n")
  with serve(lambda n, r: (200, say("Yes" if parity(r) else "No"))) as (url, seen):
    assert ask(folder, url, tmp_path / "out", exclude=tmp_path / "benchmark.txt") == 0
  summary = read(tmp_path / "out")[1]
  assert summary["excluded"] == 2 and summary["pictures"] == len(seen) == 16


class Painter:
  """Stands for TarPipeline: paints what a prompt of digits says, or something else."""

  batch = 8
  bundle = {"components": {"tokenizer": "."}, "preprocessing": {}, "sampling": {"scale": 2}}
  params = {"mllm": {"w": np.zeros(3)}}

  def __init__(self, folder, lives=100):
    self.folder, self.lives, self.painted = folder, lives, 0
    encoder = type("Encoder", (), {"image": 48})
    self.ta_tok = type("Net", (), {"cfg": type("Config", (), {"encoder": encoder})})
    (folder / "tokenizer.json").write_text("{}")

  def generate(self, texts, *, seeds, scale):
    self.lives -= 1
    if not self.lives:
      raise KeyboardInterrupt
    self.painted += len(texts)
    known = {
      row["prompt"]: row for row in prompts.draw_all(["digits"], 12, 0, prompts.Excluded())[0]
    }
    scenes = []
    for text, seed in zip(texts, seeds, strict=True):
      asked = known[text] if seed % 2 else known[min(known)]
      scenes.append(digits_scorer.scene_of(asked, stream(text, seed)))
    return [Drawn(render(scene), np.zeros(1, np.int32)) for scene in scenes]


class Reader:
  """Stands for the scorer: says how many bytes a picture has, which nothing but it can know."""

  def read(self, image):
    return image


def test_the_model_draws_and_rules_judge(tmp_path, monkeypatch):
  """Killed while drawing, and again; judged by the very rules of the scorer."""
  painter = Painter(tmp_path, lives=2)
  monkeypatch.setattr(TarPipeline, "load", lambda folder: painter)
  monkeypatch.setattr(digits_scorer, "Scorer", Reader)
  monkeypatch.setattr(digits_scorer, "judge", lambda image, row: int(image.sum()) % 2 == 0)
  options = dict(model=tmp_path, prompts="digits", count=12, candidates=4, judge="rules")
  options["out"] = tmp_path / "out"
  with pytest.raises(KeyboardInterrupt):
    call(**options)
  assert painter.painted == 8
  painter.lives = 100
  assert call(**options) == 0 and painter.painted == 48
  found, summary = read(tmp_path / "out")
  assert summary["pictures"] == 48 and summary["kept"] == len(found) > 10
  for record in found:
    yes = int(record["images"][0].sum()) % 2 == 0
    assert record["conversations"][1]["value"] == ("Yes" if yes else "No")
  assert call(**options) == 0 and painter.painted == 48
  few = options | {"count": 6}
  assert call(**few) == 0 and read(tmp_path / "out")[1]["pictures"] == 24


def test_a_folder_of_other_prompts_is_refused(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(TarPipeline, "load", lambda folder: Painter(tmp_path))
  monkeypatch.setattr(Painter, "generate", lambda self, texts, **_: [noise() for _ in texts])
  for text in ("a six\na two\n", "a six\na one\n"):
    (tmp_path / "own.txt").write_text(text)
    done = call(model=tmp_path, prompts=tmp_path / "own.txt", out=tmp_path / "out", candidates=2)
  assert done == 2 and "00001 is of another prompt than 'a one'" in capsys.readouterr().err


def noise():
  return Drawn(np.zeros((8, 8, 3), np.uint8), np.zeros(1, np.int32))


def test_prompts_alone(tmp_path):
  out = tmp_path / "out"
  assert call(prompts="geneval-style,dpg-style", count=20, out=out) == 0
  rows = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
  assert len(rows) == 20 and [p.name for p in out.iterdir()] == ["prompts.jsonl"]


def test_the_encoder_reads_the_records(folder, tmp_path):
  """Records of pictures become records of visual words, which is what finetuning mixes in."""
  home = tiny_bundle.make_bundle(tmp_path / "bundle")
  with serve(lambda n, r: (200, say("Yes" if parity(r) else "No"))) as (url, _):
    assert ask(folder, url, home / "reflect") == 0
  config = Path(__file__).parents[1] / "configs" / "encode.py"
  argv = [f"--config={config}:records:{home / 'reflect/data'}", f"--workdir={home / 'words'}"]
  assert encode.main([*argv, "--config.vqvae=", "--config.batch=8"], 0.0) == 0
  raw, words = read(home / "reflect")[0], sources.Records(home / "words/data")
  assert len(words) == len(raw)
  assert words[0]["conversations"] == raw[0]["conversations"]
  assert words[0]["codes"][0][2].shape == (36,)


@pytest.mark.parametrize(
  "options, said",
  [
    (dict(), "give either --prompts or --pictures"),
    (dict(prompts="digits", pictures="."), "give either --prompts or --pictures"),
    (dict(pictures="p", model="."), "leave out --model"),
    (dict(pictures="/nowhere"), "--pictures /nowhere is not a folder"),
    (dict(prompts="style"), "--prompts style is no file, nor of geneval-style"),
    (dict(prompts="digits", count=0), "--count must be at least 1"),
    (dict(prompts="digits", scale=4), "scale must be 1, 2 or 3"),
    (dict(prompts="digits", judge="me"), "--judge must be rules or endpoint, not me"),
    (dict(pictures=".", judge="endpoint"), "needs --endpoint and --judge_model"),
    (dict(prompts="digits", judge="rules"), "--judge needs pictures"),
    (dict(prompts="digits", model="/nowhere"), "/nowhere is not a model"),
    (dict(prompts="digits", exclude="/nowhere.txt"), "/nowhere.txt cannot be read"),
  ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, options, said):
  assert call(**{"out": tmp_path / "out"} | options) == 2
  err = capsys.readouterr().err
  assert said in err and err.startswith("error: ") and err.count("\n") == 1


def test_rules_need_prompts_they_know(folder, tmp_path, capsys):
  assert call(pictures=folder, judge="rules", out=tmp_path / "out") == 2
  assert "'prompt 0' is no prompt of digits: judge it by --rows" in capsys.readouterr().err
  shutil.rmtree(folder / "00000")
  empty = tmp_path / "empty"
  empty.mkdir()
  assert call(pictures=empty, judge="rules", out=tmp_path / "out") == 2
  assert "has no pictures like 00000/samples/0.png" in capsys.readouterr().err


def test_one_sided_judgements_are_refused(folder, tmp_path):
  found = reflect.pictures(folder, prompts.Excluded())[0]
  verdicts: judgements.Verdicts = {one.name: True for one in found}
  with pytest.raises(UserError, match="no category has both yes and no among 24"):
    reflect.build(tmp_path, found, verdicts, {})
