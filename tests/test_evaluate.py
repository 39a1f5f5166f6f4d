"""The verb: one sentence for bad input, and what it writes."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from tarjax import evaluate
from tarjax.evals import digits, digits_scorer
from tarjax.pipeline import TarPipeline


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
  bundle = {"sampling": {"image": {"temperature": 0.5, "top_k": 0}}}


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
  monkeypatch.setattr(TarPipeline, "load", lambda folder: Pipe())
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
