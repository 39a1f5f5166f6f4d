"""The launchers, as far as they go without training: arguments, refusals, and a finished run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def quickstart(*args, cwd=ROOT, **env):
  command = ["bash", str(ROOT / "launch" / "quickstart.sh"), *map(str, args)]
  return subprocess.run(
    command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=30
  )


@pytest.mark.parametrize(
  "args, sentence",
  [
    (["--fast"], "unknown argument --fast"),
    (["--out"], "--out needs a value"),
    (["--seed", "x7"], "--seed must be a whole number, got x7"),
  ],
)
def test_bad_arguments_are_one_sentence(args, sentence):
  done = quickstart(*args)
  assert done.returncode == 2
  assert sentence in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize(
  "args, sentence",
  [
    (["--", "--config=x"], "-n is missing"),
    (["-n", "0", "--", "--config=x"], "-n needs a whole number above 0"),
    (["-n", "2", "-d"], "-d needs a whole number above 0"),
    (["-n", "2", "--"], "nothing stands after --"),
    (["-n", "2", "--config=x"], "unknown argument --config=x"),
  ],
)
def test_local_refuses_bad_arguments_in_one_sentence(args, sentence):
  command = ["bash", ROOT / "launch" / "local.sh", *args]
  done = subprocess.run(command, capture_output=True, text=True, timeout=30)
  assert done.returncode == 2
  assert sentence in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def finished(out: Path, kind: str) -> None:
  out.mkdir()
  (out / "kind.txt").write_text(kind + "\n")
  for name in ("scores.json", "report.html"):
    (out / name).write_text("{}")


def test_a_finished_run_says_so_from_any_folder(tmp_path):
  finished(tmp_path / "run", "quickstart --seed 8")
  done = quickstart("--out", "run", "--seed", "08", cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(f"done: {tmp_path}/run/report.html")


@pytest.mark.parametrize("args", [[], ["--smoke", "--dif"]])
def test_a_folder_belongs_to_one_kind_of_run(tmp_path, args):
  finished(tmp_path / "run", "quickstart:smoke --seed 0")
  done = quickstart("--out", tmp_path / "run", *args)
  assert done.returncode == 2
  assert 'holds a run of "quickstart:smoke --seed 0"' in done.stderr


def copy_launchers(to: Path) -> None:
  shutil.copytree(ROOT / "launch", to / "launch")
  for name in ("requirements.txt", "requirements-test.txt"):
    (to / name).write_text("one==1\n")


def make_venv(folder: Path, path: str, **env):
  command = ["bash", "-euc", "source launch/venv.sh; make_venv requirements.txt"]
  env = {"PATH": path, "HOME": str(folder)} | env
  return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=30)


def fake_python(folder: Path, new_enough: bool) -> str:
  """A `python3` that makes an environment holding itself, and logs what it is asked for."""
  tools = folder / "tools"
  tools.mkdir()
  for name in ("bash", "cat", "cksum", "cp", "grep", "mkdir", "mv", "rm", "tr"):
    (tools / name).symlink_to(shutil.which(name) or name)
  python = tools / "python3"
  python.write_text(
    f"""#!/usr/bin/env bash
    echo "$*" >>"{folder}/log"
    case "$*" in
      *version_info*) exit {0 if new_enough else 1} ;;
      "-m venv"*) rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
      *pip*) if [[ ${{PIP_FAILS:-}} ]]; then exit 1; fi ;;
    esac
    """.replace("#!/usr/bin/env bash", f"#!{shutil.which('bash')}")
  )
  python.chmod(0o755)
  return str(tools)


def test_an_old_python_is_named_as_what_is_missing(tmp_path):
  copy_launchers(tmp_path)
  done = make_venv(tmp_path, fake_python(tmp_path, new_enough=False))
  assert done.returncode == 2
  assert "Python 3.11 or newer" in done.stderr and done.stderr.count("\n") == 1


def test_the_environment_is_made_once_and_again_when_it_must(tmp_path):
  copy_launchers(tmp_path)
  path = fake_python(tmp_path, new_enough=True)
  log = tmp_path / "log"

  def installs(**env):
    log.write_text("")
    code = make_venv(tmp_path, path, **env).returncode
    return code, log.read_text().count("install -q"), log.read_text().count("-m venv")

  assert installs(PIP_FAILS="1") == (2, 1, 1)  # as if interrupted
  assert installs() == (0, 1, 1)
  assert installs() == (0, 0, 0)
  (tmp_path / "requirements.txt").write_text("one==2\n")
  assert installs() == (0, 1, 0)
  assert installs() == (0, 0, 0)
