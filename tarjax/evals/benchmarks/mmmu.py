"""MMMU (arXiv 2311.16502), validation: 900 questions of college exams, with up to seven pictures.

All pictures stand in front; "<image 1>" stays in the text. Options are read off by MMMU's own
rules, whose last resort is a random one: the question's id chooses it, and `guessed` counts these.
"""

import ast
import re
import zlib

from tarjax.evals.benchmarks.base import LETTER, LETTERS, WORD, Benchmark, lettered
from tarjax.evals.intervals import ratio

MARK = re.compile(r"<image (\d+)>")
IMAGES = tuple(f"image_{i}" for i in range(1, 8))
NUMBERS = (
  re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234,567
  re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.5e-3
  re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
TELLING = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")


def question(row) -> str:
  if is_choice(row):
    return f"{row['question']}\n{lettered(options(row))}\n\n{LETTER}"
  return f"{row['question']}\n{WORD}"


def is_choice(row) -> bool:
  return row["question_type"] == "multiple-choice"


def options(row) -> list[str]:
  """The column holds Python's spelling of a list.

  Raises:
    ValueError: it does not.
  """
  try:
    found = ast.literal_eval(row["options"])
  except (ValueError, SyntaxError, TypeError) as e:
    raise ValueError(f"question {row['id']!r} has the options {row['options']!r}") from e
  return list(found)


def images(row) -> list:
  """Each picture that question or options name, once."""
  text = row["question"] + (lettered(options(row)) if is_choice(row) else "")
  return [row[f"image_{number}"] for number in sorted(set(MARK.findall(text)))]


def chosen(answer: str, row) -> tuple[str, bool]:
  """An answer to a choice -> the letter it means, and whether that is a guess."""
  texts = options(row)
  letters = LETTERS[: len(texts)]
  for char in ",.!?;:'":
    answer = answer.strip(char)
  answer = f" {answer} "
  at = {}  # the letters found, and where each stands last
  for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
    at = {c: answer.rfind(place.format(c)) for c in letters if form.format(c) in answer}
    if at:
      break
  if not at and len(answer.split()) > 5:
    lower = answer.lower()
    at = {c: lower.rfind(t.lower()) for c, t in zip(letters, texts, strict=True)}
    at = {c: place for c, place in at.items() if place >= 0}
  if not at:
    return letters[zlib.crc32(str(row["id"]).encode()) % len(letters)], True
  return max(at, key=lambda c: at[c]), False  # of equals, the first


def normal(text: str) -> list[str | float]:
  """A number of two decimals, or the text in small letters; a single letter with a space."""
  text = text.strip()
  try:
    return [round(float(text.replace(",", "")), 2)]
  except ValueError:
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def readings(answer: str) -> list[str | float]:
  """What an open answer may say: the ends of its telling sentences, and the numbers in them."""
  answer = answer.strip().strip(".").lower()
  parts = re.split(r"\.\s(?=[A-Z])|\n", answer)
  ends = []
  for i, part in enumerate(parts):
    words = TELLING + (("=",) if i == len(parts) - 1 else ())
    tails = [part.split(word)[-1].strip() for word in words if word in part]
    # as in the original, an empty tail gives way to the next one
    best = ""
    for tail in tails:
      best = tail if not best or len(tail) < len(best) else best
    if best and best not in tuple(":,.!?;'"):
      ends.append(best)
  ends = ends or [answer]
  numbers = [n for end in ends for pattern in NUMBERS for n in pattern.findall(end)]
  return [value for text in ends + numbers for value in normal(text)]


def agrees(answer: str, row) -> bool:
  """Whether a reading of an open answer contains a true text, or is a true number."""
  true = [value for text in truths(row) for value in normal(text)]
  texts = [t for t in true if isinstance(t, str)]
  return any(
    any(t in said for t in texts) if isinstance(said, str) else said in true
    for said in readings(answer)
  )


def truths(row) -> list[str]:
  return row["answer"] if isinstance(row["answer"], list) else [row["answer"]]


def judge(rows, answers):
  counts = []
  for row, answer in zip(rows, answers, strict=True):
    found = re.match(r"[^_]+_(.+)_\d+$", row["id"])
    if not found:
      raise ValueError(f"the id {row['id']!r} is not of the form validation_Subject_1")
    if is_choice(row):
      letter, guessed = chosen(answer, row)
      right = letter in truths(row)
    else:
      right, guessed = agrees(answer, row), False
    subject = f"subject {found[1]}"
    counts.append({"n": 1, "right": right, "guessed": guessed, subject: right, f"{subject} n": 1})
  return counts


def metrics(sums):
  subjects = [name for name in sums if name.startswith("subject ") and not name.endswith(" n")]
  whole = {"accuracy": ratio(sums["right"], sums["n"]), "guessed": sums["guessed"]}
  return whole | {name: ratio(sums[name], sums[f"{name} n"]) for name in sorted(subjects)}


MMMU = Benchmark(
  name="mmmu",
  folders=("MMMU",),
  files=("data/validation-*.parquet", "validation-*.parquet", "*/validation-*.parquet"),
  columns=("id", "question", "options", "answer", "question_type", *IMAGES),
  pictures=IMAGES,
  question=question,
  images=images,
  judge=judge,
  metrics=metrics,
  max_new=128,
)
