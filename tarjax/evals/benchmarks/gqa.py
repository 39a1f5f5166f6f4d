"""GQA (arXiv 1902.09506), balanced testdev: 12,578 questions with answers of a word or two.

An answer is right when it is the true one but for case and punctuation. The pictures lie in files
of their own.
"""

import string

from tarjax.evals.benchmarks.base import WORD, Benchmark, Counts
from tarjax.evals.intervals import ratio

PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
  return text.lower().translate(PUNCTUATION)


def judge(rows, answers) -> list[Counts]:
  pairs = zip(rows, answers, strict=True)
  return [{"n": 1, "right": plain(said.strip()) == plain(row["answer"])} for row, said in pairs]


GQA = Benchmark(
  name="gqa",
  folders=("GQA",),
  files=("testdev_balanced_instructions/testdev-*.parquet",),
  columns=("id", "imageId", "question", "answer"),
  pictures=(),
  question=lambda row: row["question"] + WORD,
  images=lambda row: [row["image"]],
  judge=judge,
  metrics=lambda sums: {"exact_match": ratio(sums["right"], sums["n"])},
  max_new=16,
  linked=(("testdev_balanced_images/testdev-*.parquet",), "imageId", "image"),
)
