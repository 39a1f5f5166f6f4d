"""The verb: one sentence for bad input, and what it writes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import benchmark_data
import numpy as np
import pytest

from tarjax import evaluate, self_reflect
from tarjax.evals import digits, digits_scorer
from tarjax.pipeline import Drawn, TarPipeline


def call(tmp_path, **changed) -> list[str]:
  options = {"model": tmp_path, "out": tmp_path / "scores.json"} | changed
  return [part for key, value in options.items() for part in (f"--{key}", str(value))]


@pytest.mark.parametrize(
  "changed, sentence",
  [
    ({}, "is not a model: it has no bundle.json"),
    ({"model": "/nowhere"}, "/nowhere is not a model"),
    ({"tasks": "digits,imagenet"}, "unknown task 'imagenet'; the tasks are digits"),
    ({"count": 5}, "--count must be at least 12"),
    ({"scale": 4}, "scale must be 1, 2 or 3, not 4"),
    ({"seed": -1}, "--seed must not be negative"),
    ({"out": "/nowhere/scores.json"}, "there is no folder /nowhere"),
    ({"report": "/nowhere/report.html"}, "there is no folder /nowhere"),
    ({"tasks": "pope"}, "--tasks pope needs --data"),
    ({"tasks": "pope", "data": "/nowhere"}, "--data /nowhere is not a folder"),
    ({"tasks": "pope", "data": "/tmp", "report": "r.html"}, "--report shows the digits"),
    ({"tasks": "digits,mme", "data": "/usr/lib"}, "mme: /usr/lib has no folder MME"),
    ({"limit": -1}, "--limit must not be negative"),
    ({"batch": 0}, "--batch must be at least 1"),
    ({"best_of": 0}, "--best_of must be at least 1"),
    ({"tasks": "reconstruction", "data": "/nowhere"}, "the pictures /nowhere cannot"),
    ({"tasks": "reconstruction", "data": "digits:x"}, "the pictures digits:x cannot be read: "),
    ({"tasks": "reconstruction,pope", "data": "/tmp"}, "run the other tasks apart from it"),
    ({"judge_feed": "x"}, "--judge_feed must be ids or reencoded, not x"),
  ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, changed, sentence):
  assert evaluate.main(call(tmp_path, **changed), time.time()) == 2
  said = capsys.readouterr().err
  assert sentence in said and said.startswith("error: ") and said.count("\n") == 1


def test_exit_code_of_the_process(tmp_path):
  command = [sys.executable, "-m", "tarjax.evaluate", *call(tmp_path, count=5)]
  done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=60)
  assert done.returncode == 2 and "Traceback" not in done.stderr


class Pipe:
  """Stands for TarPipeline; says what lmms_eval.json says, of pictures that know their numbers."""

  bundle = {
    "components": {"tokenizer": "."},
    "preprocessing": {"canvas": 48},
    "sampling": {"image": {"temperature": 0.5, "top_k": 0}, "text": {"top_k": 3}},
  }
  params = {"mllm": {"w": np.zeros(3)}}
  ta_tok = SimpleNamespace(cfg=SimpleNamespace(encoder=SimpleNamespace(image=384)))

  def __init__(self, folder):
    self.folder = Path(folder)
    (self.folder / "tokenizer.json").write_text("{}")

  def describe(self, images, questions, *, scale, seeds, max_new, temperature):
    assert scale == 1 and temperature == 0 and len(seeds) == len(questions) <= 4
    name = "pope" if max_new == 128 else "gqa"
    return [known(name, question) for question in questions]


def known(name, question):
  data = benchmark_data.KNOWN[name]
  return data["answers"][data["prompts"].index(question)]


class Evaluator:
  """Yields fixed numbers in the form of the real one."""

  def __init__(self, scorer, **settings):
    self.settings = settings
    self.drawings = [
      digits.Drawing("colours", "a red three", np.zeros((4, 4, 3)), "nothing", False)
    ]
    self.answers, self.rebuilt = [], []

  def run(self, pipe):
    yield "t2i/colours", 0.75
    yield "t2i/overall", 0.625
    yield "i2t/digit", 0.5
    yield "ceiling/t2i/overall", 0.9375
    yield "chance/t2i/overall", 0.03125
    yield "ta_tok/usage", 0.25
    yield "ta_tok/scale1/usage", 0.125


def test_scores_report_and_table(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(TarPipeline, "load", lambda folder, *_: Pipe(folder))
  monkeypatch.setattr(digits, "Evaluator", Evaluator)
  monkeypatch.setattr(digits_scorer, "Scorer", lambda: None)
  (tmp_path / "mllm").mkdir()
  done = {"seconds": 12.5, "steps": 7, "peak_gb": 1.5, "more": "left out"}
  (tmp_path / "mllm" / "done.json").write_text(json.dumps(done))
  (tmp_path / "mllm" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
  argv = call(tmp_path, report=tmp_path / "report.html", temperature=0.25)
  assert evaluate.main(argv, time.time() - 3) == 0
  scores = json.loads((tmp_path / "scores.json").read_text())
  assert scores["t2i"] == {"colours": 0.75, "overall": 0.625}
  assert scores["ceiling"] == {"t2i": {"overall": 0.9375}}
  assert scores["ta_tok"] == {"usage": 0.25, "scale1": {"usage": 0.125}}
  assert scores["stages"]["mllm"] == {"seconds": 12.5, "steps": 7, "peak_gb": 1.5}
  assert scores["stages"]["evaluate"]["seconds"] >= 3
  assert scores["settings"]["temperature"] == 0.25 and scores["settings"]["scale"] == 2
  said = capsys.readouterr().out
  assert any(
    line.split() == ["t2i/overall", "0.625", "0.938", "0.031"] for line in said.splitlines()
  )
  page = (tmp_path / "report.html").read_text()
  assert "a red three" in page and "Tar pretraining" in page and "0.625" in page


def test_benchmarks_are_scored_with_what_they_depend_on(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(TarPipeline, "load", lambda folder, *_: Pipe(folder))
  benchmark_data.write_all(tmp_path / "data", ["pope", "gqa"])
  argv = call(tmp_path, tasks="gqa,pope", data=tmp_path / "data", batch=4, limit=1)
  assert evaluate.main(argv, time.time()) == 0
  found = json.loads((tmp_path / "scores.json").read_text())
  assert list(found["benchmarks"]) == ["gqa", "pope"]
  pope = found["benchmarks"]["pope"]
  assert pope["questions"] == 1 and pope["scorer"] == 1 and pope["max_new"] == 128
  assert pope["sampler"] == {"top_k": 3, "temperature": 0.0, "scale": 1}
  assert set(pope["scores"]["f1"]) == {"value", "low", "high"}
  made = found["provenance"]
  assert len(made["checkpoint"]["mllm"]) == len(made["checkpoint"]["tokenizer"]) == 64
  assert made["preprocessing"]["encoder"] == 384 and made["versions"]["jax"] and made["revision"]
  assert "gqa/exact_match" in capsys.readouterr().out
  assert len((tmp_path / "scores.answers.jsonl").read_text().splitlines()) == 3

  changed = Pipe(tmp_path)
  changed.params = {"mllm": {"w": np.ones(3)}}
  monkeypatch.setattr(TarPipeline, "load", lambda folder, *_: changed)
  assert evaluate.main([*argv, "--resume"], time.time()) == 2
  assert "scores.answers.jsonl cannot be resumed: checkpoint.mllm was" in capsys.readouterr().err


def test_pictures_are_the_best_of_several(tmp_path, capsys, monkeypatch):
  """N, the feed and the question are in the results, and a drawing goes on with the same only."""
  drawn = []

  def best_of(pipe, prompts, *, n, seeds, feed, scale):
    assert (n, feed, scale) == (4, "reencoded", 1) and len(set(seeds)) == len(prompts)
    drawn.extend(prompts)
    return [Drawn(np.zeros((8, 8, 3), np.uint8), np.zeros(1, np.int32)) for _ in prompts]

  monkeypatch.setattr(TarPipeline, "load", lambda folder, *_: Pipe(folder))
  monkeypatch.setattr(self_reflect, "best_of", best_of)
  cat = [{"class": "cat", "count": 1}]
  lines = [{"tag": "single_object", "prompt": prompt, "include": cat} for prompt in ("1", "2")]
  (tmp_path / "data/geneval").mkdir(parents=True)
  path = tmp_path / "data/geneval/evaluation_metadata.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  argv = call(tmp_path, tasks="geneval", data=tmp_path / "data", judge_feed="reencoded")
  assert evaluate.main([*argv, "--best_of", "4"], time.time()) == 0
  assert drawn == ["1"] * 4 + ["2"] * 4
  found = json.loads((tmp_path / "scores.json").read_text())["pictures"]["geneval"]
  assert (found["best_of"], found["judge_feed"]) == (4, "reencoded")
  assert found["question"] == 'Does this image match the prompt "{prompt}"? Answer yes or no.'
  assert evaluate.main([*argv, "--best_of", "4", "--resume"], time.time()) == 0 and len(drawn) == 8
  assert evaluate.main([*argv, "--best_of", "2", "--resume"], time.time()) == 2
  assert "cannot be resumed: best_of was 4, and is 2" in capsys.readouterr().err
  monkeypatch.setattr(Pipe, "generate", best_of, raising=False)
  assert evaluate.main([*argv, "--resume"], time.time()) == 2 and len(drawn) == 8


def test_digits_are_the_best_of_several(tmp_path, monkeypatch):
  made = []
  monkeypatch.setattr(TarPipeline, "load", lambda folder, *_: Pipe(folder))
  monkeypatch.setattr(digits, "Evaluator", lambda scorer, **how: made.append(how) or Evaluator(0))
  monkeypatch.setattr(digits_scorer, "Scorer", lambda: None)
  monkeypatch.setattr(self_reflect, "best_of", lambda pipe, prompts, **how: how)
  assert evaluate.main([*call(tmp_path), "--best_of", "3"], time.time()) == 0
  found = json.loads((tmp_path / "scores.json").read_text())["settings"]
  assert (found["best_of"], found["judge_feed"]) == (3, "ids") and "{prompt}" in found["question"]
  assert made[0]["draw"](["a six"], seeds=[0]) == {"n": 3, "feed": "ids", "seeds": [0]}
  assert evaluate.main(call(tmp_path), time.time()) == 0 and made[1]["draw"] is None
