"""POPE (arXiv 2305.10355): does the model see objects that are not there?

9,000 yes/no questions about COCO pictures. An answer must be exactly "yes" or "no". Metrics are
over all questions; recall does not count answers that are neither, and lmms-eval's yes_ratio is
that of the truth, so the model's own is said_yes.
"""

from tarjax.evals.benchmarks.base import WORD, Benchmark, yes_or_no
from tarjax.evals.intervals import ratio


def judge(rows, answers):
  counts = []
  for row, answer in zip(rows, answers, strict=True):
    said, true = answer.lower().strip(), yes_or_no(row, row["answer"].lower().strip())
    known = said if said in ("yes", "no") else "other"
    counts.append({"n": 1, f"true_{true}": 1, f"said_{known}": 1, f"{true}_{known}": 1})
  return counts


def metrics(sums):
  right = sums["yes_yes"] + sums["no_no"]
  precision = ratio(sums["yes_yes"], sums["yes_yes"] + sums["no_yes"])
  recall = ratio(sums["yes_yes"], sums["yes_yes"] + sums["yes_no"])
  return {
    "f1": ratio(2 * precision * recall, precision + recall),
    "accuracy": ratio(right, sums["n"]),
    "precision": precision,
    "recall": recall,
    "yes_ratio": ratio(sums["true_yes"], sums["n"]),
    "said_yes": ratio(sums["said_yes"], sums["n"]),
    "neither": sums["said_other"],
  }


POPE = Benchmark(
  name="pope",
  folders=("POPE",),
  files=("data/test-*.parquet", "test-*.parquet"),
  columns=("question_id", "question", "answer", "image"),
  pictures=("image",),
  question=lambda row: row["question"].strip() + WORD,
  images=lambda row: [row["image"]],
  judge=judge,
  metrics=metrics,
  max_new=128,
)
