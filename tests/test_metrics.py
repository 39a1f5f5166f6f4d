import io
import json
import math
import time

import numpy as np
import pytest

from tarjax import metrics, writers


def test_usage_over_a_sliding_window():
  usage = metrics.CodeUsage(8, window=8)
  assert usage.values() == {}
  usage.add(np.full((2, 4), 7))
  usage.add(np.array([[0, 1], [2, 3]]))
  values = usage.values()
  assert values["codes_used"] == 5 and values["codes_usage"] == 5 / 8
  p = np.array([0.5, 0.125, 0.125, 0.125, 0.125])
  assert values["codes_perplexity"] == pytest.approx(math.exp(-(p * np.log(p)).sum()))
  usage.add(np.array([0, 1, 2, 3]))  # the sevens have left the window
  assert usage.values()["codes_perplexity"] == pytest.approx(4)
  usage.add(np.arange(100) % 2)  # more than the window at once
  assert usage.values()["codes_perplexity"] == pytest.approx(2)
  assert len(usage.parts) == 1


def test_meter_means_and_rates():
  meter = metrics.Meter(batch=10, codes=4)
  for i in range(4):
    step = {"loss": np.float32(i), "lr": np.float32(i), "codes": np.array([i]), "skipped": False}
    meter.add(step, waited=0.0, compiled=100.0 if i == 0 else 0.0)
  meter.since -= 102.0  # four steps in two seconds after compiling for a hundred
  values = meter.read()
  assert values["loss"] == 1.5 and values["lr"] == 3 and values["codes_usage"] == 1
  assert values["steps_per_second"] == pytest.approx(2, rel=0.2)
  assert values["samples_per_second"] == pytest.approx(20, rel=0.2)
  assert values["compile_seconds"] == 100 and not meter.steps


def test_lines_after_the_restored_step_are_cut(tmp_path):
  writer = writers.Writer(tmp_path, 0)
  for step in (2, 4, 6):
    writer.write(step, {"loss": 1.0 / step, "bad": math.inf})
  writer.close()
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text() + '{"step": 8, "lo')  # killed in the middle of a line
  writer = writers.Writer(tmp_path, 4)
  writer.write(6, {"loss": 3.0})
  writer.close()
  found = [json.loads(line) for line in path.read_text().splitlines()]
  assert [x["step"] for x in found] == [2, 4, 6]
  assert found[0] == {"step": 2, "loss": 0.5, "bad": None} and found[2]["loss"] == 3.0
  assert list(tmp_path.glob("events.out.tfevents*"))


def test_progress_lines():
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  values = {
    "loss": 0.12345,
    "steps_per_second": 2.0,
    "samples_per_second": 64.0,
    "data_wait": 0.25,
  }
  file, terminal = io.StringIO(), Terminal()
  for stream in (file, terminal):
    progress = writers.Progress("vqvae", 200, stream)
    progress.show(50, values)
    progress.show(60, values | {"val/loss": 0.5, "tokens_per_second": 99.0, "skipped": 3.0})
  first, second = file.getvalue().splitlines()
  expected = "vqvae 50/200  loss 0.1235  2.00 steps/s  64 samples/s  data wait 25%  ETA 1:15"
  assert first == expected and "val 0.5" in second
  assert "99 tokens/s" in second and "3 skipped" in second
  assert terminal.getvalue().count("\n") == 0 and terminal.getvalue().count("\r") == 2


def test_skipped_steps_are_in_no_mean():
  meter = metrics.Meter(batch=10, codes=None)
  for loss, skipped in ((1.0, False), (math.nan, True), (3.0, False)):
    meter.add({"loss": loss, "lr": 0.1, "skipped": skipped}, waited=0.0, compiled=0.0, tokens=50)
  meter.since -= 3.0
  values = meter.read()
  assert values["loss"] == 2 and values["skipped"] == 1
  assert values["tokens_per_second"] == pytest.approx(50, rel=0.2)


def test_clock_adds_up_over_restarts(tmp_path):
  clock = metrics.Clock(tmp_path, time.time() - 10)
  clock.loop = time.time() - 6
  clock.add("data", 1.0)
  first = clock.read(5)
  assert first["spent"] == {
    "step": pytest.approx(5, abs=1),
    "compile": 0,
    "data": 1,
    "save": 0,
    "eval": 0,
    "idle": pytest.approx(4, abs=1),
  }
  clock = metrics.Clock(tmp_path, time.time() - 20)
  timing = clock.read(9)
  assert timing["seconds"] == pytest.approx(30, abs=1) and timing["steps"] == 9
  assert timing["spent"]["idle"] == pytest.approx(24, abs=1) and timing["spent"]["data"] == 1
  assert timing["peak_gb"] > 0.05
  assert json.loads((tmp_path / "timing.json").read_text()) == timing
  assert metrics.goodput(timing).startswith("step 1")
