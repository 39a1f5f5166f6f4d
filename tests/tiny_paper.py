"""A bundle of random networks of the paper configs' tiny sizes, and their evaluators in training.

As a script, tiny_paper.py HOME OUT, it is one of several processes and writes `scores` of the MLLM
to OUT/<process>.json.
"""

import importlib
import json
import sys
from pathlib import Path

import benchmark_data
import jax
import numpy as np
from PIL import Image
from tiny_bundle import random_tree

from configs import base
from tarjax import checkpoint, distributed, saving, state, tasks
from tarjax import config as configs
from tarjax.data import tokenizer
from tarjax.evals.inside import Evaluators
from tarjax.stage import make_stage

STAGES = ("mllm", "ta_tok", "ar_dtok", "vqvae")
PICTURES = 6
EVALS = {
  "mllm": {
    "geneval": dict(bundle="..", data="../data", scale=3, batch=8),
  },
  "ta_tok": {"reconstruction": dict(count=PICTURES, scales=[3], batch=8)},
  "vqvae": {"reconstruction": dict(count=PICTURES, batch=8)},
  "ar_dtok": {"reconstruction": dict(bundle="..", scales=[3], batch=8)},
}
FOLDER = {"name": "folder", "path": "../data/pictures"}


def parse(stage: str, home: Path):
  file = importlib.import_module(f"configs.{stage}").__file__
  config = configs.parse([f"--config={file}:tiny", f"--workdir={home / stage}"])[0]
  evals = {name: dict(given) for name, given in EVALS.get(stage, {}).items()}
  if "reconstruction" in evals:
    evals["reconstruction"]["source"] = FOLDER
  with config.unlocked():
    config.update(dict(workdir=str(home / stage), evals=evals, eval_every=2))
  config.model.dtype = "float32"
  if "remat" in config.model:
    config.model.remat = "none"
  if stage == "vqvae":
    config.data.size = 16  # SSIM needs 11
  return config


def make_bundle(home: Path, stages=STAGES) -> Path:
  """Runs, bundle.json and data for the evaluators."""
  parts = {stage: stage for stage in stages}
  if "mllm" in stages:
    parts["tokenizer"] = make_tokenizer(home)
  for number, stage in enumerate(stages):
    make_run(home, stage, number)
  bundle = {
    "components": parts,
    "preprocessing": {"resize": "squash", "drawn": 8, "canvas": 28},
    "sampling": {"scale": 3, "text": {"temperature": 0.0}}
    | {"image": {"temperature": 1.0}, "pixels": {"guidance_scale": 2.0}},
  }
  (home / "bundle.json").write_text(json.dumps(bundle))
  write_data(home / "data")
  return home


def make_tokenizer(home: Path) -> str:
  texts = [file.read_text() for file in sorted(Path(configs.__file__).parent.glob("*.py"))]
  text = tokenizer.build_tokenizer(home / "tokenizer", base.TINY_WORDS - 22, texts)
  tokenizer.add_image_tokens(text, home / "tokenizer_tar", base.TINY_TA_TOK["codes"])
  return "tokenizer_tar"


def make_run(home: Path, stage: str, seed: int) -> None:
  config = parse(stage, home)
  task = tasks.make_task(config)
  saver = saving.Saver(home / stage, 1)
  params = random_tree(task.init, seed)
  saver.save(1, state.TrainState(1, params, {"count": np.zeros(())}), {})
  saver.close()
  checkpoint.save_frozen(home / stage, random_tree(task.init_frozen, 7))
  (home / stage / "config.json").write_text(json.dumps({"config": configs.plain(config)}))


def write_data(data: Path) -> None:
  benchmark_data.write_all(data, ["pope"])
  (data / "geneval").mkdir()
  lines = [
    {"tag": "counting", "prompt": f"{n} cats", "include": [{"class": "cat", "count": n}]}
    for n in (1, 2)
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (data / "geneval" / "evaluation_metadata.jsonl").write_text(text)
  (data / "pictures").mkdir()
  rng = np.random.default_rng(0)
  for i in range(PICTURES):
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    coarse.resize((36, 30)).save(data / "pictures" / f"{i}.png")


def scores(home: Path, stages, mesh: dict, devices=None) -> dict[str, float]:
  """What the evaluators of these stages log of the runs in HOME."""
  found = {}
  for stage in stages:
    config = parse(stage, home)
    config.mesh = mesh
    made = make_stage(config, devices)
    run = str(home / stage)
    params = state.put(checkpoint.load(run), made.layout.params)
    frozen = made.layout.frozen
    if jax.tree.leaves(frozen):
      frozen = state.put(checkpoint.load(run, frozen=True), frozen)
    with jax.set_mesh(made.mesh):
      values = dict(Evaluators(config, made.mesh).run(state.TrainState(3, params, ()), frozen))
    found |= {f"{stage}/{name}": value for name, value in values.items()}
  return found


if __name__ == "__main__":
  jax.config.update("jax_default_matmul_precision", "highest")
  distributed.start([])
  found = scores(Path(sys.argv[1]), ["mllm"], {"data": 1, "fsdp": 2, "model": 1})
  Path(sys.argv[2], f"{jax.process_index()}.json").write_text(json.dumps(found))
  sys.exit(distributed.leave(0, together=True))
