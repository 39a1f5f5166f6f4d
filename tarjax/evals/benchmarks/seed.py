"""SEED-Bench (arXiv 2307.16125): 18,000 questions of four options, on pictures and on video frames.

The first letter of the answer counts, whatever its case.
"""

from tarjax.evals.benchmarks.base import LETTER, Benchmark, lettered
from tarjax.evals.intervals import ratio


def question(row) -> str:
  options = lettered([row[f"choice_{c}"] for c in "abcd"])
  return f"{row['question']}\n{options}\n{LETTER}"


def judge(rows, answers):
  counts = []
  for row, answer in zip(rows, answers, strict=True):
    kind, true, said = row["data_type"], row["answer"], answer.strip()[:1]
    if kind not in ("image", "video") or true not in tuple("ABCD"):
      raise ValueError(
        f"question {row['question_id']!r} has data_type {kind!r} and the answer {true!r}"
      )
    counts.append({f"{kind}_n": 1, kind: said.lower() == true.lower()})
  return counts


def metrics(sums):
  return {
    "image": ratio(sums["image"], sums["image_n"]),
    "video": ratio(sums["video"], sums["video_n"]),
    "all": ratio(sums["image"] + sums["video"], sums["image_n"] + sums["video_n"]),
  }


SEED = Benchmark(
  name="seed",
  folders=("SEED-Bench",),
  files=("data/test-*.parquet", "test-*.parquet"),
  columns=(
    *("question_id", "question", "choice_a", "choice_b", "choice_c", "choice_d"),
    *("answer", "data_type", "image"),
  ),
  pictures=("image",),
  question=question,
  images=lambda row: row["image"] if isinstance(row["image"], list) else [row["image"]],
  judge=judge,
  metrics=metrics,
  max_new=16,
)
