"""The configs that point the laptop run's stages at other people's files."""

import pytest

from configs import own_data
from tarjax import config as configs
from tarjax.data import rows


@pytest.mark.parametrize("stage", own_data.STAGES)
def test_each_stage_reads_what_it_is_told(tmp_path, stage, monkeypatch):
  monkeypatch.chdir(tmp_path)
  file = own_data.__file__
  argv = [f"--config={file}:{stage}:folder:pictures", f"--workdir={tmp_path}"]
  config, _ = configs.parse([*argv, "--config.data.workers=3"])
  data = rows.make_config(config.data)
  assert [dict(spec) for spec in data.sources] == [
    {"name": "folder", "path": str(tmp_path / "pictures"), "weight": 1.0}
  ]
  assert (data.workers, data.max_damaged) == (3, 0.01)


@pytest.mark.parametrize("variant", ["vqvae", "vqvae:folder", "vqvea:folder:x"])
def test_a_variant_that_says_too_little(variant):
  with pytest.raises(ValueError, match="the variant is STAGE:NAME:PATH with a stage of"):
    own_data.get_config(variant)
