"""A codebook that falls out of use ends the run with its own verdict and exit code."""

import sys
import time

import fake_stage
import pytest

from tarjax import collapse, train
from tarjax.collapse import Collapsed
from tarjax.config import FREE


@pytest.fixture
def fake(monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
  fake_stage.install(monkeypatch.setattr, lambda name, m: monkeypatch.setitem(sys.modules, name, m))
  return fake_stage


def test_a_run_stops_when_too_few_codes_are_in_use(fake, tmp_path, capsys):
  """The stage draws from 32 codes, so of 128 a quarter is in use."""
  argv = [f"--config={fake_stage.config_file(tmp_path)}", f"--workdir={tmp_path / 'run'}"]
  argv += ["--config.model.codes=128", "--config.min_usage_after=4", "--config.min_usage=0.3"]
  assert train.main(argv, time.time()) == 4
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and "not converged: 25.0% of the codes are in use at step 6" in said
  assert not (tmp_path / "run" / "done.json").exists()
  assert {"min_usage", "min_usage_after"} <= FREE  # no weight depends on them


def test_when_it_looks():
  class Config:
    min_usage, min_usage_after = 0.5, 100

  collapse.look(Config, 100, {"codes_usage": 0.1})
  collapse.look(Config, 101, {"codes_usage": 0.5})
  collapse.look(Config, 101, {"loss": 1.0})  # a stage without codes
  with pytest.raises(Collapsed, match="10.0% .* step 101, .*min_usage=0.5"):
    collapse.look(Config, 101, {"codes_usage": 0.1})
  Config.min_usage = 0.0
  collapse.look(Config, 101, {"codes_usage": 0.0})
