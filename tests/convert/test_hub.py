"""Checkpoints that are named as huggingface.co names them."""

import json

import huggingface_hub

from tests.convert import checkpoints as make


def test_without_a_network(tmp_path, capsys, monkeypatch):
  def offline(*args, **kwargs):
    raise ConnectionError("no network")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
  monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
  for name in ("csuhan/Tar-1.5B", "csuhan/TA-Tok/ta_tok.pth"):
    assert make.run("import", name, "--to", tmp_path / "run") == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and name in err and not out and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_with_a_network(tmp_path, monkeypatch):
  """The revision is that of the cache's folder, and stands in the provenance."""
  cache = tmp_path / "cache" / "snapshots" / "0123abc"
  cache.parent.mkdir(parents=True)
  make.qwen2(cache)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(cache))
  assert make.run("import", "owner/model", "--to", tmp_path / "run") == 0
  record = json.loads((tmp_path / "run" / "provenance.json").read_text())
  assert (record["source"], record["revision"]) == ("owner/model", "0123abc")
