"""MMBench, English dev split (arXiv 2307.06281): each question asked with its options rotated.

Rows whose index is equal modulo a million form one item, which counts when all of them are right.
The option is read off an answer by rules: first a letter that stands alone, then the text of one
option. Where these find none, MMBench asks GPT; here the item is not right, and `unresolved` says
how many items hang on such answers alone.
"""

import math

from tarjax.evals.benchmarks.base import LETTER, Benchmark
from tarjax.evals.intervals import ratio

TURN = 1_000_000
OPTIONS = "ABCD"
CHOICES = "ABCDE"
AROUND = (  # what may stand around a letter, in the order in which it is looked for
  ("", "."),
  ("", ","),
  ("", ":"),
  ("", ")"),
  ("", ")."),
  ("(", ")"),
  ("(", ")."),
  (":", ""),
  (":", ","),
  (":", "."),
  (":", ")"),
  (":", ")."),
)


def question(row) -> str:
  options = [(k, row[k]) for k in CHOICES if row.get(k) and not missing(row[k])]
  lines = "\n".join(f"{k}. {text}" for k, text in options if text != "nan")
  hint = "" if missing(row["hint"]) or row["hint"] == "nan" else f"{row['hint']} "
  listed = f"There are several options:\n{lines}".rstrip("\n")
  return f"{hint}{row['question']} {listed}\n{LETTER}"


def missing(value) -> bool:
  return value is None or (isinstance(value, float) and math.isnan(value))


def parse(answer: str, row) -> str:
  """The letter that an answer means, or ""; an option's text may be "nan", as in the files."""
  words = answer.split()
  alone = [c for c in CHOICES if c in words]
  if len(alone) == 1 and not ("A" in words and len(words) > 3):  # that A may be an article
    return alone[0]
  for before, after in AROUND:
    found = [c for c in CHOICES if before + c + after in words]
    if len(found) == 1:
      return found[0]
  lower = answer.lower()
  named = [k for k in OPTIONS if not missing(row.get(k)) and str(row[k]).lower() in lower]
  return named[0] if len(named) == 1 else ""


def judge(rows, answers):
  items: dict[int, list] = {}
  for row, answer in zip(rows, answers, strict=True):
    if row["answer"] not in tuple(CHOICES):
      raise ValueError(f"question {row['index']} has the answer {row['answer']!r}")
    items.setdefault(unit(row), []).append((row, parse(answer.strip(), row)))
  counts = []
  for index, turns in items.items():
    first = next((row for row, _ in turns if row["index"] == index), None)
    if first is None:
      continue  # lmms-eval looks at the items of the unturned rows only
    wrong = any(said and said != row["answer"] for row, said in turns)
    open_ = not wrong and any(not said for _, said in turns)
    right = not wrong and not open_
    count = {"n": 1, "right": right, "unresolved": open_}
    for name in (f"L2 {first['L2-category']}", f"category {first['category']}"):
      count |= {name: right, f"{name} n": 1}
    counts.append(count)
  return counts


def metrics(sums):
  whole = {"accuracy": 100 * ratio(sums["right"], sums["n"]), "unresolved": sums["unresolved"]}
  groups = sorted(name for name in sums if name.startswith(("L2 ", "category ")))
  parts = {k: 100 * ratio(sums[k], sums[f"{k} n"]) for k in groups if not k.endswith(" n")}
  return whole | parts


def unit(row):
  return int(row["index"]) % TURN


MMBENCH = Benchmark(
  name="mmbench",
  folders=("MMBench", "MMBench_EN"),
  files=("en/dev-*.parquet", "data/dev-*.parquet", "dev-*.parquet"),
  columns=("index", "question", "hint", "answer", *OPTIONS, "category", "L2-category", "image"),
  pictures=("image",),
  question=question,
  images=lambda row: [row["image"]],
  unit=unit,
  judge=judge,
  metrics=metrics,
  max_new=1024,
)
