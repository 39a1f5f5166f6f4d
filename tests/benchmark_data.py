"""Small copies of the benchmarks' data sets in their public layouts."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tarjax.evals.benchmarks import mmmu

KNOWN = json.loads((Path(__file__).parent / "lmms_eval.json").read_text())
FILES = {
  "pope": "POPE/data/test-00000-of-00001.parquet",
  "mme": "MME/data/test-00000-of-00001.parquet",
  "mmbench": "MMBench/en/dev-00000-of-00001.parquet",
  "seed": "SEED-Bench/data/test-00000-of-00001.parquet",
  "gqa": "GQA/testdev_balanced_instructions/testdev-00000-of-00001.parquet",
  "mmmu": "MMMU/data/validation-00000-of-00001.parquet",
}


def png(number: int) -> dict:
  """A picture that knows its number, as Hugging Face stores it."""
  stream = io.BytesIO()
  Image.fromarray(np.full((4, 6, 3), number % 256, np.uint8)).save(stream, "PNG")
  return {"bytes": stream.getvalue(), "path": f"{number}.png"}


def rows_of(name: str) -> list[dict]:
  """Rows of lmms_eval.json with pictures; row i shows picture i, and video also i + 1."""
  rows = []
  for i, row in enumerate(KNOWN[name]["rows"]):
    if name == "seed":
      row = row | {"image": [png(i + k) for k in range(1 + (row["data_type"] == "video"))]}
    elif name == "mmmu":
      row = row | {c: png(i) if c <= "image_2" else None for c in mmmu.IMAGES}
    elif name != "gqa":
      row = row | {"image": png(i)}
    rows.append(row)
  return rows


def write(path: Path, rows: list[dict], group: int = 7) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
  return path


def write_all(data: Path, names=tuple(FILES)) -> Path:
  for name in names:
    write(data / FILES[name], rows_of(name))
    if name == "gqa":
      pictures = [{"id": f"n{i}", "image": png(100 + i)} for i in range(4)]
      write(data / "GQA/testdev_balanced_images/testdev-00000-of-00001.parquet", pictures)
  return data
