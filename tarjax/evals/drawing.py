"""Draws the pictures of GenEval and DPG-Bench, in the folders that their programs read.

  DATA/geneval/evaluation_metadata.jsonl -> FOLDER/00000/metadata.jsonl, FOLDER/00000/samples/0.png
  DATA/dpg_bench/prompts/NAME.txt        -> FOLDER/NAME.png, four tiles in one picture

Four pictures to a prompt. Each seed comes from the prompt and the picture's number, so that a part
of the prompts, in any batch, has the same pictures. A prompt whose files are there is done.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tarjax.config import UserError, flatten, write_json
from tarjax.evals import dpg, geneval
from tarjax.evals.asking import seed_of

EACH = 4  # pictures of a prompt
MADE_BY = "made_by.json"


class Job(NamedTuple):
  """A prompt, the files of its pictures, and what writes them from uint8[each y x 3]."""

  prompt: str
  files: tuple[Path, ...]
  write: Callable[[np.ndarray], None]


def geneval_jobs(data: Path, folder: Path) -> list[Job]:
  """Raises UserError: no or another metadata file."""
  places = [data / "geneval" / part / geneval.LINES for part in ("", "prompts")]
  path = next((p for p in places if p.is_file()), places[0])
  return layout(folder, geneval.read_metadata(path), EACH)


def layout(folder: Path, prompts: Sequence[dict[str, Any]], each: int) -> list[Job]:
  """Jobs for prompts {"prompt", ...} with so many pictures each, in GenEval's folders."""
  jobs = []
  for number, wanted in enumerate(prompts):
    inside = folder / f"{number:05d}"
    files = tuple(inside / "samples" / f"{k}.png" for k in range(each))

    def write(images, inside=inside, files=files, wanted=wanted):
      files[0].parent.mkdir(parents=True, exist_ok=True)
      (inside / "metadata.jsonl").write_text(json.dumps(wanted) + "\n")
      for file, image in zip(files, images, strict=True):
        save(file, image)

    jobs.append(Job(wanted["prompt"], files, write))
  return jobs


def dpg_jobs(data: Path, folder: Path) -> list[Job]:
  """Raises UserError: no prompts."""
  jobs = []
  for name, prompt in dpg.prompts(data / "dpg_bench" / "prompts").items():
    file = folder / f"{name}.png"
    jobs.append(Job(prompt, (file,), lambda images, file=file: save(file, dpg.sheet(images))))
  return jobs


JOBS = {"geneval": geneval_jobs, "dpg": dpg_jobs}


def claim(folder: Path, made_by: dict[str, Any], resume: bool) -> None:
  """Makes the folder, or goes on in one whose pictures depend on the same.

  Raises:
    UserError: it is there without `resume`, or was made by something else.
  """
  path = folder / MADE_BY
  if folder.exists() and not resume:
    raise UserError(f"{folder} is there already: give --resume to go on in it, or another --out")
  folder.mkdir(exist_ok=True)
  if not path.is_file():
    if any(folder.iterdir()):
      raise UserError(f"{folder} has files but no {MADE_BY}: it is no folder of ours")
    write_json(path, made_by)
    return
  try:
    old, new = flatten(json.loads(path.read_text())), flatten(json.loads(json.dumps(made_by)))
  except (ValueError, AttributeError) as e:
    raise UserError(f"{path} is damaged: {e}") from e
  for key in sorted(old.keys() | new.keys()):
    if old.get(key) != new.get(key):
      name = key.replace("/", ".")
      raise UserError(
        f"{folder} cannot be resumed: {name} was {old.get(key)}, and is {new.get(key)}"
      )


def draw(
  jobs: Sequence[Job],
  generate: Callable[..., Sequence[Any]],
  batch: int,
  say: Callable[[str], None],
  each: int = EACH,
) -> None:
  """Draws what is not there yet.

  Args:
    generate: (prompts, seeds=) -> objects with `image` uint8[y x 3], as `TarPipeline.generate`.
    batch: pictures at a time.
    each: pictures of a prompt.
  """
  left = [job for job in jobs if not all(file.is_file() for file in job.files)]
  if len(left) < len(jobs):
    say(f"{len(jobs) - len(left)} of {len(jobs)} prompts are drawn")
  size = max(batch // each, 1)
  for start in range(0, len(left), size):
    part = left[start : start + size]
    asked = [job.prompt for job in part for _ in range(each)]
    seeds = [seed_of(job.prompt, k) for job in part for k in range(each)]
    drawn = generate(asked, seeds=seeds)
    for i, job in enumerate(part):
      job.write(np.stack([d.image for d in drawn[i * each : (i + 1) * each]]))
    say(f"{len(jobs) - len(left) + start + len(part)} of {len(jobs)} prompts")


def save(file: Path, image: np.ndarray) -> None:
  """Atomic: a file that is there is whole."""
  new = file.with_name(file.name + ".new")
  Image.fromarray(image).save(new, "PNG")
  os.replace(new, file)
