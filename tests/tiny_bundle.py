"""A bundle of random networks of the laptop run's sizes, for tests of verbs that need one."""

import importlib
import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from configs.digits import base
from tarjax import checkpoint, saving, tasks
from tarjax import config as configs
from tarjax.data import tokenizer
from tarjax.data.digits import text_documents
from tarjax.state import TrainState

RUNS = {"mllm": "sft", "ta_tok": "ta_tok", "ar_dtok": "ar_dtok", "vqvae": "vqvae"}


def make_bundle(home: Path) -> Path:
  """Writes every component and bundle.json into `home`, which may lie on disk already."""
  if (home / "bundle.json").is_file():
    return home
  text = tokenizer.build_tokenizer(
    home / "tokenizer", base.TEXT_ROWS - 22, text_documents(count=3000)[::2]
  )
  tokenizer.add_image_tokens(text, home / "tokenizer_tar", base.CODES)
  for number, (stage, run) in enumerate(RUNS.items()):
    file = importlib.import_module(f"configs.digits.{stage}").__file__
    config = configs.parse([f"--config={file}:smoke", f"--workdir={home / run}"])[0]
    task = tasks.make_task(config)
    saver = saving.Saver(home / run, 1)
    saver.save(1, TrainState(1, random_tree(task.init, number), {"count": np.zeros(())}), {})
    saver.close()
    checkpoint.save_frozen(home / run, random_tree(task.init_frozen, number))
    (home / run / "config.json").write_text(json.dumps({"config": configs.plain(config)}))
  shutil.copy(Path(base.__file__).with_name("bundle.json"), home / "bundle.json")
  return home


def random_tree(init, seed: int):
  """What an init makes, with noise for its values, which needs no compilation."""
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    return rng.normal(path[-1].key == "scale", 0.1, leaf.shape).astype(leaf.dtype)

  return jax.tree.map_with_path(fill, nn.meta.unbox(jax.eval_shape(init, jax.random.key(0))))
