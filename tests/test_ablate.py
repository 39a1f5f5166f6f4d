"""Making a table: each run once, what crashes and what does not, kills, several callers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_table import make, page

from tarjax import ablate, ablations

HERE = Path(__file__).parent
ENV = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}"}
RUNS = 13  # one that is shared, and two for each of six


@pytest.fixture
def base(tmp_path):
  (tmp_path / "base" / "start").mkdir(parents=True)
  return tmp_path / "base"


def words(tmp_path, file: str, *more: str) -> list[str]:
  return [file, "--base", str(tmp_path / "base"), "--out", str(tmp_path / "out"), *more]


def call(tmp_path, file: str, *more: str) -> subprocess.Popen:
  command = [sys.executable, "-m", "tarjax.ablate", *words(tmp_path, file, *more)]
  pipe = subprocess.PIPE
  return subprocess.Popen(command, cwd=HERE.parent, env=ENV, stdout=pipe, stderr=pipe, text=True)


def finish(caller: subprocess.Popen) -> tuple[int, str, str]:
  out, err = caller.communicate(timeout=60)
  return caller.returncode, out, err


def starts(out: Path) -> dict[str, int]:
  """How often each run was started."""
  found = {file.parent: len(file.read_text().split()) for file in out.glob("*/*/starts")}
  return {str(k.relative_to(out)): n for k, n in found.items() if not k.is_symlink()}


def test_a_row_that_crashes_does_not_stop_the_others(tmp_path, base):
  file, out = page(tmp_path, code=7), tmp_path / "out"
  code, said, _ = finish(call(tmp_path, file))
  assert code == 1 and "a-0/mllm: crashed" in said
  assert len(starts(out)) == RUNS - 1 and set(starts(out).values()) == {1}
  assert not (out / "a-0/score/done.json").exists() and (out / "a-1/score/done.json").is_file()
  failed = json.loads((out / "a-0/mllm.failed.json").read_text())
  assert failed["verdict"] == "crashed" and failed["code"] == 7
  assert failed["tail"][-1] == "it ends badly"
  assert (out / "b-1" / "common").resolve() == out / "shared" / "common"
  assert (out / "b-1" / "start").resolve() == base / "start"

  code, said, _ = finish(call(tmp_path, page(tmp_path)))  # it is tried again, and nothing else is
  assert code == 0 and starts(out) == dict.fromkeys(starts(out), 1) | {"a-0/mllm": 2}
  assert len(starts(out)) == RUNS and not (out / "a-0/mllm.failed.json").exists()


def test_what_does_not_converge_is_a_result(tmp_path, base):
  file, out = page(tmp_path, code=4), tmp_path / "out"
  code, said, _ = finish(call(tmp_path, file, "--only", "a,b"))
  assert code == 0 and "a-0/mllm: not converged" in said
  assert len(starts(out)) == 8  # c was not asked for
  assert finish(call(tmp_path, file, "--only", "a"))[0] == 0
  assert starts(out)["a-0/mllm"] == 1  # nor is it tried again


def wait_for(path: Path) -> None:
  for _ in range(600):
    if path.exists():
      return
    time.sleep(0.05)
  raise AssertionError(f"{path} did not appear")


def test_a_killed_caller_leaves_its_run_at_work_and_the_next_one_waits(tmp_path, base):
  """The lock outlives the caller, so that nobody does the same beside the orphan."""
  file, out = page(tmp_path, steps=30, seconds=0.1), tmp_path / "out"
  caller = call(tmp_path, file, "--only", "b")
  wait_for(out / "shared/common/step2")
  caller.kill()
  finish(caller)
  assert not (out / "shared/common/done.json").exists()
  code, _, _ = finish(call(tmp_path, file, "--only", "b"))
  assert code == 0 and set(starts(out).values()) == {1} and len(starts(out)) == 5


def test_a_stopped_caller_goes_on_where_it_was(tmp_path, base):
  file, out = page(tmp_path, steps=40, seconds=0.1), tmp_path / "out"
  caller = call(tmp_path, file, "--only", "b")
  wait_for(out / "shared/common/step2")
  caller.send_signal(signal.SIGTERM)
  assert finish(caller)[0] == 143
  assert not list(out.glob("*/*.failed.json")) and not (out / "shared/common/done.json").exists()
  assert finish(call(tmp_path, page(tmp_path, steps=40), "--only", "b"))[0] == 0
  assert starts(out)["shared/common"] == 2
  log = (out / "shared/common.log").read_text().splitlines()
  assert log == [f"step {i}" for i in range(40)]  # none was done again


def test_two_callers_make_every_run_once(tmp_path, base):
  file, out = page(tmp_path, steps=5, seconds=0.1), tmp_path / "out"
  callers = [call(tmp_path, file) for _ in range(2)]
  ends = [finish(caller) for caller in callers]
  assert [end[0] for end in ends] == [0, 0], ends
  assert len(starts(out)) == RUNS and set(starts(out).values()) == {1}


@pytest.mark.parametrize(
  "change, sentence",
  [
    ({"file": "none.py"}, "there is no table none.py"),
    ({"more": ["--only", "a,x"]}, "Table 0 has no row 'x'; its rows are a, b, c"),
    ({"base": "nowhere"}, "nowhere is no folder"),
    ({"start": None}, "has no start, which Table 0 starts from"),
    ({"file": "text.py"}, "text.py fails: NameError"),
    ({"file": "empty.py"}, "empty.py is no table: it has no get_table"),
    ({"file": "page.py:tiny"}, "a table is itself or its :mini, not :tiny"),
    ({"held": {"page": "scales.py", "mini": True}}, "out holds {'page': 'scales.py'"),
    ({"taken": True}, "is not the link to"),
  ],
)
def test_mistakes_are_one_sentence(tmp_path, base, capsys, monkeypatch, change, sentence):
  page(tmp_path)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "text.py").write_text("nothing")
  (tmp_path / "empty.py").write_text("")
  if "start" in change:
    (base / "start").rmdir()
  if "held" in change:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/table.json").write_text(json.dumps(change["held"]))
  if "taken" in change:
    (tmp_path / "out/b-0/start").mkdir(parents=True)
  argv = words(tmp_path, change.get("file", "page.py"), *change.get("more", []))
  if "base" in change:
    argv[2] = change["base"]
  assert ablate.main(argv) == 2
  said = capsys.readouterr().err
  assert sentence in said and said.startswith("error: ") and said.count("\n") == 1


def test_commands_are_shown_and_nothing_is_made(tmp_path, base, capsys):
  assert ablate.main(words(tmp_path, page(tmp_path), "--dry-run", "--only", "b")) == 0
  said = capsys.readouterr().out.splitlines()
  out = tmp_path / "out"
  assert said[0] == "# shared/common: missing" and len(said) == 10
  assert said[1].startswith(f"python -m fake_run {out}/shared/common --steps 1")
  assert not out.exists()


def test_a_graph_is_checked():
  table = make()
  assert table.of_rows(["b"])[0] == "shared/common" and len(table.of_rows(["b"])) == 5
  assert table.of_base(table.of_rows(["b"])) == ["start"]
  ablations.check(table)
  circle = ablations.Folder(
    {"x": ablations.Run("m", (), ("y",)), "y": ablations.Run("m", (), ("x",))}
  )
  row = {"a": ablations.Row("a", {"und": ("f/x",)})}
  for changed, sentence in (
    ({"folders": {"f": circle}, "rows": row, "effects": ()}, "f/x needs f/y needs f/x"),
    ({"metrics": {}}, "row 'a' has a score 'und', which is no metric"),
    ({"rows": row, "effects": ()}, "row 'a' names 'f/x', which is no run"),
    ({"effects": (ablations.Effect("", "und", "a", "x"),)}, "an effect is of 'x'"),
    ({"effects": (ablations.Effect("", "und", "a", "b", "better"),)}, "an effect is 'better'"),
    ({"folders": dict(table.folders, f=ablations.Folder({}, {"x": "g/x"}))}, "the link f/x names"),
  ):
    with pytest.raises(ablate.UserError, match=sentence):
      ablations.check(ablations.Table(**(vars(table) | changed)))
