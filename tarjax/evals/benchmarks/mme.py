"""MME (arXiv 2306.13394): 2,374 yes/no questions, two to a picture, in 14 categories.

A category scores the mean over its pictures of accuracy plus "both right", in percent: 200 at most.
Perception is the sum of ten categories, cognition of four.
"""

from tarjax.evals.benchmarks.base import WORD, Benchmark, yes_or_no
from tarjax.evals.intervals import ratio

# fmt: off
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)
COGNITION = (
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
)
# fmt: on


def parse(answer: str) -> str:
  """An answer -> yes, no or other."""
  answer = answer.lower().strip().replace(".", "")
  if len(answer) == 1:
    return {"y": "yes", "n": "no"}.get(answer, "other")
  return next((word for word in ("yes", "no") if word in answer[:4]), "other")


def judge(rows, answers):
  groups: dict[tuple, list[str]] = {}
  for row, answer in zip(rows, answers, strict=True):
    if row["category"] not in PERCEPTION + COGNITION:
      raise ValueError(f"question {row['question_id']!r} has the category {row['category']!r}")
    true = yes_or_no(row, row["answer"].lower().strip().replace(".", ""))
    said = parse(answer)
    verdict = "other" if said == "other" else "right" if said == true else "wrong"
    groups.setdefault(unit(row), []).append(verdict)
  counts = []
  for (category, question), verdicts in groups.items():
    if len(verdicts) != 2:
      raise ValueError(
        f"picture {question!r} of {category} has {len(verdicts)} questions, where MME has 2"
      )
    right = verdicts.count("right")
    points = 100.0 * right / 2 + 100.0 * (right == 2)
    counts.append({category: points, f"{category} n": 1, "neither": verdicts.count("other")})
  return counts


def metrics(sums):
  each = {name: ratio(sums[name], sums[f"{name} n"]) for name in PERCEPTION + COGNITION}
  totals = {
    "perception": sum(each[name] for name in PERCEPTION),
    "cognition": sum(each[name] for name in COGNITION),
  }
  return totals | each | {"neither": sums["neither"]}


def unit(row):
  return row["category"], row["question_id"]


MME = Benchmark(
  name="mme",
  folders=("MME",),
  files=("data/test-*.parquet", "test-*.parquet"),
  columns=("question_id", "category", "question", "answer", "image"),
  pictures=("image",),
  question=lambda row: row["question"].strip().replace(" Please answer yes or no.", "") + WORD,
  images=lambda row: [row["image"]],
  unit=unit,
  judge=judge,
  metrics=metrics,
  max_new=16,
)
