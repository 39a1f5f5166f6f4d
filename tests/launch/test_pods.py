"""The pod launchers with stand-ins for gcloud, kubectl and Slurm: commands, quoting, restarts."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
RUN = ["--config=configs/x.py", "--workdir=/mnt/tar/runs/a b", '--config.note=it\'s "$HOME" & co']
TPU = "--name tar --zone us-east5-a --topology v5p:4x4x4 --mount gs://bucket".split()
GKE = "--name tar --topology v5e:16x16 --image gcr.io/p/tar:1 --mount nas:/share".split()
SLURM = ["--nodes", "2", "--gpus", "8"]


def stand_in(folder: Path, name: str, body: str) -> None:
  """A program `name` that appends its arguments to calls.json, a list a line, and does `body`."""
  path = folder / name
  path.write_text(
    f"""#!{sys.executable} -IS
import json, os, pathlib, signal, sys, time
here, name, args = pathlib.Path({str(folder)!r}), {name!r}, sys.argv[1:]
with open(here / "calls.json", "a") as f:
  f.write(json.dumps([name, *args]) + "\\n")
{body}
"""
  )
  path.chmod(0o755)


def calls(folder: Path) -> list[list[str]]:
  path = folder / "calls.json"
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def launch(folder: Path, script: str, *args: str, **env):
  command = ["bash", str(ROOT / "launch" / script), *args]
  env = {"PATH": f"{folder}:{os.environ['PATH']}", "POLL": "0", "PAUSE": "0"} | env
  return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
  "script, args, sentence",
  [
    ("tpu_vm.sh", [*TPU[2:], "--", *RUN], "--name must be lower-case letters"),
    ("tpu_vm.sh", [*TPU, "--slices", "0", "--", *RUN], "--slices must be a whole number above 0"),
    ("tpu_vm.sh", [*TPU, "--topology", "v5p:4x4", "--", *RUN], "--topology must be CHIP:SHAPE"),
    ("tpu_vm.sh", [*TPU, "--mount", "bucket", "--", *RUN], "--mount must be gs://BUCKET or HOST"),
    ("tpu_vm.sh", [*TPU, "--", "--config=x", "--workdir=gs://b/run"], "--workdir=gs://b/run: runs"),
    ("tpu_vm.sh", [*TPU, "--", "--config=x", "--workdir=runs/a"], "directory under /mnt/tar"),
    ("tpu_vm.sh", [*TPU, "--", "--workdir=/mnt/tar/a"], "--config=FILE is missing after --"),
    ("gke.sh", [*GKE, "--image", "a b", "--", *RUN], "--image must be a container image"),
    ("gke.sh", [*GKE, "--restarts", "-1", "--", *RUN], "--restarts must be a whole number"),
    ("gke.sh", [*GKE, "--frob", "--", *RUN], "unknown argument --frob"),
    ("slurm.sh", ["--gpus", "8", "--", *RUN], "--nodes is missing"),
    ("slurm.sh", [*SLURM, "--time", "long", "--", *RUN], "--time must be a time"),
    ("slurm.sh", [*SLURM, "--", "--config=x"], "--workdir=DIR is missing after --"),
    ("worker.sh", ["--restarts", "x", "--", *RUN], "--restarts must be a whole number above 0"),
  ],
)
def test_a_bad_argument_is_named(tmp_path, script, args, sentence):
  done = launch(tmp_path, script, *args)
  assert done.returncode == 2 and not calls(tmp_path)
  assert sentence in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


# A queue whose answers are in states.json, and a run whose exit codes are in codes.json.
GCLOUD = """
verb = args[3]
def next_of(name):
  values = json.loads((here / name).read_text())
  (here / name).write_text(json.dumps(values[1:]))
  return values[0]
if verb == "list":
  print(next_of("states.json"))
if verb == "ssh" and "tpu_host.sh start" in args[-1]:
  sys.exit(next_of("codes.json"))
"""


def tpu_vm(folder, states, codes, *args):
  stand_in(folder, "gcloud", GCLOUD)
  (folder / "states.json").write_text(json.dumps(states))
  (folder / "codes.json").write_text(json.dumps(codes))
  done = launch(folder, "tpu_vm.sh", *TPU, *args, "--", *RUN)
  return done.returncode, [c[1:] for c in calls(folder)]


def test_a_slice_that_is_taken_away_is_asked_for_again(tmp_path):
  states = ["", "PROVISIONING", "ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE"]
  code, called = tpu_vm(tmp_path, states, [255, 0], "--spot", "--project", "my-project")
  assert code == 0
  assert all(c[:3] == ["compute", "tpus", "queued-resources"] for c in called)
  verbs = [c[3] for c in called if c[3] != "list"]
  started = ["scp", "ssh", "ssh", "ssh"]  # the code, unpacked, set up, started
  assert verbs == ["create", *started, "delete", "create", *started, "delete"]
  place = ["--zone=us-east5-a", "--quiet", "--project=my-project"]
  created = next(c for c in called if c[3] == "create")
  assert created[4:] == [
    *("tar", *place, "--node-id=tar", "--accelerator-type=v5p-128"),
    *("--runtime-version=v2-alpha-tpuv5", "--spot", "--async"),
  ]
  start = [c for c in called if c[3] == "ssh"][2]
  assert {"--node=all", "--worker=all", *place} < set(start)
  words = shlex.split(start[-1].removeprefix("--command="))
  expected = ["cd", "tarjax", "&&", "bash", "launch/tpu_host.sh", "start", "--restarts", "10", "--"]
  assert words == [*expected, *RUN]
  set_up = [c for c in called if c[3] == "ssh"][1]
  assert set_up[-1] == "--command=cd tarjax && bash launch/tpu_host.sh setup gs://bucket"


@pytest.mark.parametrize("code", [2, 3, 130])
def test_a_run_that_cannot_go_on_leaves_the_slice_as_it_is(tmp_path, code):
  got, called = tpu_vm(tmp_path, ["ACTIVE"], [code])
  assert got == code and not {"create", "delete"} & {c[3] for c in called}


def test_several_slices_and_a_dry_run(tmp_path):
  stand_in(tmp_path, "gcloud", "sys.exit(1)")
  args = [*TPU, "--topology", "v6e:16x16", "--slices", "4", "--dry-run", "--keep", "--", *RUN]
  done = launch(tmp_path, "tpu_vm.sh", *args)
  assert done.returncode == 0 and not calls(tmp_path)
  create = next(line for line in done.stderr.splitlines() if " create " in line)
  assert "--node-count=4 --node-prefix=tar --accelerator-type=v6e-256" in create
  start = next(line for line in done.stderr.splitlines() if "tpu_host.sh\\ start" in line)
  assert shlex.split(shlex.split(start)[-1].removeprefix("--command="))[-3:] == RUN
  assert " delete " not in done.stderr


def test_a_refusal_of_the_cloud_ends_the_launcher(tmp_path):
  stand_in(tmp_path, "gcloud", "sys.exit('no such project')")
  done = launch(tmp_path, "tpu_vm.sh", *TPU, "--", *RUN)
  assert done.returncode == 2 and "gcloud cannot list" in done.stderr
  stand_in(tmp_path, "gcloud", "if args[3] == 'create': sys.exit(7)")
  assert launch(tmp_path, "tpu_vm.sh", *TPU, "--", *RUN).returncode == 7


# A run that ends with the codes of codes.json, one per start, or waits for TERM.
PYTHON = """
assert os.environ["TARJAX_DISTRIBUTED"] == "1" and args[:2] == ["-m", "tarjax.train"]
codes = json.loads((here / "codes.json").read_text())
(here / "codes.json").write_text(json.dumps(codes[1:]))
if codes[0] == "wait":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  print("waiting", flush=True)
  time.sleep(60)
sys.exit(codes[0])
"""


def worker(folder: Path, codes: list, *args: str):
  stand_in(folder, "python", PYTHON)
  (folder / "codes.json").write_text(json.dumps(codes))
  return launch(folder, "worker.sh", *args, "--", *RUN, PYTHON=str(folder / "python"))


@pytest.mark.parametrize(
  "codes, args, code, starts",
  [
    ([1, 143, 134, 0], [], 0, 4),
    ([2], [], 2, 1),
    ([3] * 9, ["--restarts", "3"], 3, 3),
  ],
)
def test_a_worker_is_started_again_but_not_for_a_bad_config(tmp_path, codes, args, code, starts):
  done = worker(tmp_path, codes, *args)
  assert done.returncode == code
  assert calls(tmp_path) == [["python", "-m", "tarjax.train", *RUN]] * starts


def wait_for(condition, seconds=20):
  end = time.time() + seconds
  while not condition():
    assert time.time() < end, "it did not come"
    time.sleep(0.05)


def test_a_terminated_worker_ends_with_the_runs_code(tmp_path):
  stand_in(tmp_path, "python", PYTHON)
  (tmp_path / "codes.json").write_text('["wait"]')
  command = ["bash", ROOT / "launch" / "worker.sh", "--", *RUN]
  env = os.environ | {"PYTHON": str(tmp_path / "python")}
  with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
    assert process.stdout and process.stdout.readline() == b"waiting\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
  assert len(calls(tmp_path)) == 1


def test_a_host_keeps_its_run_when_the_launcher_goes_and_stops_when_asked(tmp_path):
  stand_in(tmp_path, "python", PYTHON)
  (tmp_path / "codes.json").write_text('["wait"]')
  (tmp_path / "launch").mkdir()
  for name in ("tpu_host.sh", "worker.sh", "arguments.sh"):
    (tmp_path / "launch" / name).write_text((ROOT / "launch" / name).read_text())
  env = os.environ | {"PYTHON": str(tmp_path / "python")}

  def host(*args):
    command = ["bash", tmp_path / "launch" / "tpu_host.sh", *args]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

  with host("start", "--", *RUN) as first:
    assert first.stdout and first.stdout.readline() == "waiting\n"
    first.kill()  # the connection is lost
  with host("start", "--", *RUN) as second:
    assert second.stdout and second.stdout.readline() == "waiting\n"
    assert host("stop").wait(20) == 0
    assert second.wait(20) == 130
  assert calls(tmp_path) == [["python", "-m", "tarjax.train", *RUN]]
  (tmp_path / "codes.json").write_text("[2]")
  assert host("start", "--", *RUN).wait(20) == 2


def test_a_jobset_has_what_a_slice_needs(tmp_path):
  odd = [*RUN, "--config.other=$(HOME) ${NAME} \\ "]
  args = [*GKE, "--slices", "2", "--spot", "--dry-run", "--", *odd]
  done = launch(tmp_path, "gke.sh", *args)
  assert done.returncode == 0 and "${NAME}" in done.stdout
  jobset = yaml.safe_load(done.stdout)
  assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  (job,) = jobset["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  assert (job["replicas"], spec["completions"], spec["parallelism"]) == (2, 64, 64)
  (rule,) = spec["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
  pod = spec["template"]["spec"]
  assert pod["restartPolicy"] == "Never"  # or a podFailurePolicy is refused
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "16x16",
    "cloud.google.com/gke-spot": "true",
  }
  (container,) = pod["containers"]
  assert container["name"] == rule["onExitCodes"]["containerName"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  # Kubernetes reads $$( as $(.
  assert [a.replace("$$(", "$(") for a in container["args"]] == odd
  assert container["args"][-1].count("$$(") == 1
  assert pod["volumes"][0] == {"name": "tar", "nfs": {"server": "nas", "path": "/share"}}
  assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


@pytest.mark.parametrize("state, verbs", [("", ["get", "apply"]), ("Failed", None)])
def test_a_jobset_that_ended_is_made_again(tmp_path, state, verbs):
  stand_in(tmp_path, "kubectl", f"if args[0] == 'get': print({state!r}, end='')")
  done = launch(tmp_path, "gke.sh", *GKE, "--topology", "v5p:2x2x1", "--", *RUN)
  assert done.returncode == 0, done.stderr
  assert [c[1] for c in calls(tmp_path)] == (verbs or ["get", "delete", "apply"])


def test_slurm_gets_one_task_per_gpu_and_the_arguments_as_they_are(tmp_path):
  stand_in(tmp_path, "sbatch", "(here / 'job.sh').write_text(sys.stdin.read())")
  stand_in(tmp_path, "srun", "sys.exit(5)")
  stand_in(tmp_path, "scontrol", "")
  env = {"PYTHON": "/opt/my python", "SLURM_JOB_ID": "7"}
  run = [RUN[0], f"--workdir={tmp_path}/a b", RUN[2]]
  args = [*SLURM, "--time", "1-0", "--partition", "gpu", "--sbatch", "--comment=a b", "--", *run]
  done = launch(tmp_path, "slurm.sh", *args, **env)
  assert done.returncode == 0, done.stderr
  (submitted,) = calls(tmp_path)
  wanted = {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--requeue", "--time=1-0"}
  wanted |= {"--partition=gpu", "--comment=a b", "--dependency=singleton", "--signal=B:USR1@180"}
  assert wanted < set(submitted)
  done = subprocess.run(["bash", tmp_path / "job.sh"], env=os.environ | env | {
    "PATH": f"{tmp_path}:{os.environ['PATH']}"
  }, timeout=20)  # fmt: skip
  assert done.returncode == 5  # srun's, and no requeue
  flags = ["--kill-on-bad-exit=0", "--wait=0"]
  expected = [*flags, "bash", "launch/worker.sh", "--restarts", "10", "--", *run]
  assert calls(tmp_path)[1:] == [["srun", *expected]]


def test_slurm_saves_and_queues_again_before_the_time_is_up(tmp_path):
  stand_in(tmp_path, "sbatch", "(here / 'job.sh').write_text(sys.stdin.read())")
  stand_in(
    tmp_path,
    "srun",
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    "(here / 'pid').write_text(str(os.getpid()))\ntime.sleep(60)",
  )
  stand_in(tmp_path, "scancel", "os.kill(int((here / 'pid').read_text()), signal.SIGTERM)")
  stand_in(tmp_path, "scontrol", "")
  run = ["--config=x", f"--workdir={tmp_path}/run"]
  launch(tmp_path, "slurm.sh", *SLURM, "--", *run, PYTHON="python")
  env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
  with subprocess.Popen(["bash", tmp_path / "job.sh"], env=env) as job:
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 0
  assert calls(tmp_path)[2:] == [["scancel", "--signal=TERM", "7"], ["scontrol", "requeue", "7"]]


def test_a_jobs_name_tells_workdirs_apart(tmp_path):
  names = set()
  for workdir in ("runs/a", "runs/b/a", str(ROOT / "runs" / "a")):
    done = launch(
      tmp_path, "slurm.sh", *SLURM, "--dry-run", "--", "--config=x", f"--workdir={workdir}"
    )
    names.add(next(w for w in shlex.split(done.stdout) if w.startswith("--job-name")))
  assert len(names) == 2


def test_the_skypilot_task(tmp_path):
  task = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
  assert task["resources"]["use_spot"] and task["file_mounts"]["/mnt/tar"]["mode"] == "MOUNT"
  assert task["resources"]["job_recovery"]["max_restarts_on_errors"] == 0
  stand_in(tmp_path, "bash", "")
  env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RUN": shlex.join(RUN)}
  subprocess.run(["/bin/bash", "-c", task["run"]], env=os.environ | env, check=True, timeout=20)
  assert calls(tmp_path) == [["bash", "launch/worker.sh", "--", *RUN]]


def test_plans_are_kept_and_made_into_a_table(tmp_path):
  held = {"total": 3 * 2**30}
  plan = {"topology": "v5p:4x4x4", "mesh": {"data": 8, "fsdp": 8, "model": 1}, "fits": True}
  plan |= {"bytes_per_chip": held, "step_seconds": 0.25, "at_most_seconds": 0.5, "mfu": 0.456}
  plan |= {"images_per_second": 2048.0, "chip_hours": 1234.5}
  body = f"""
if args[0] == "-":
  os.execvp("python3", ["python3", *args])
print({json.dumps(plan)!r} if "v5p" in str(args) else '{{"fits": false, "topology": "v5e:8x8",'
      '"mesh": {{"data": 8}}, "bytes_per_chip": {{"total": 0}}}}')
sys.exit(0 if "v5p" in str(args) else 2 if "v6e" in str(args) else 1)
"""
  crash = "import sys\nif args[0] != '-':\n  raise ValueError('a bug')"
  stand_in(tmp_path, "python", body)
  env = {"PYTHON": str(tmp_path / "python")}
  out = ["--out", str(tmp_path / "plans")]
  done = launch(tmp_path, "plans.sh", *out, "ta_tok.py v5p", **env)
  assert done.returncode == 0, done.stderr
  row = "| `ta_tok.py` | v5p:4x4x4 (8, 8, 1) | 3.0 | 0.250 | 0.500 | 45.6% | 2,048 images |"
  assert done.stdout.splitlines()[2].startswith(row)
  planned = ["-m", "tarjax.plan", "--config=configs/ta_tok.py", "--topology=v5p:4x4x4", "--json"]
  assert calls(tmp_path)[0] == ["python", *planned]
  again = launch(tmp_path, "plans.sh", *out, "ta_tok.py v5p", **env)
  assert again.stdout == done.stdout and len(calls(tmp_path)) == 3
  assert "does not fit" in launch(tmp_path, "plans.sh", *out, "ta_tok.py v5e", **env).stdout
  assert launch(tmp_path, "plans.sh", *out, "ta_tok.py v6e", **env).returncode == 2
  stand_in(tmp_path, "python", crash)  # its exit code is that of a plan that does not fit
  crashed = launch(tmp_path, "plans.sh", *out, "dif_dtok.py:512 v5e", **env)
  assert crashed.returncode == 1 and "a bug" in crashed.stderr and not crashed.stdout
