"""The benchmark of the data pipeline runs, and counts every picture of a round."""

import runpy
import sys
from pathlib import Path

FILE = Path(__file__).parent.parent / "benchmarks" / "data_rate.py"


def test_it_prints_both_rates(monkeypatch, capsys):
  sizes = ["--count=32", "--side=64", "--size=48", "--rounds=2"]
  monkeypatch.setattr(sys, "argv", [str(FILE), *sizes])
  runpy.run_path(str(FILE), run_name="__main__")
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3 and lines[-1].startswith("median: Pillow ") and lines[-1].endswith("%")
