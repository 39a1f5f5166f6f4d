"""Whether pictures match their prompts: by rules, files of verdicts, or an endpoint's answers.

An answer is on disk before the next ones are asked for, and is asked for once.
"""

import hashlib
import mimetypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tarjax.config import UserError
from tarjax.data import transforms
from tarjax.data.fields import MATCHES
from tarjax.evals import digits_scorer, geneval
from tarjax.evals.answers import Answers
from tarjax.evals.endpoint import Endpoint, verdict

FILE = "judgements.jsonl"
Verdicts = dict[str, bool | None]  # of pictures by name; None is neither yes nor no


class Candidate(NamedTuple):
  """A picture: its name within the folder, the file, and its prompt's metadata."""

  name: str
  file: Path
  wanted: dict[str, Any]

  @property
  def question(self) -> str:
    return MATCHES.replace("{prompt}", self.wanted["prompt"])


def by_endpoint(
  judge: Endpoint, found: Sequence[Candidate], out: Path, parallel: int
) -> tuple[Verdicts, dict[str, Any]]:
  """Verdicts of a model behind an endpoint, and what they depend on.

  Raises:
    UserError: OUT/judgements.jsonl has answers of another judge, or the endpoint fails; the picture
      is named.
  """

  def ask(one: Candidate) -> str:
    mime = mimetypes.guess_type(one.file.name)[0] or "image/png"
    try:
      return judge.ask(one.file.read_bytes(), mime, one.question)
    except UserError as e:
      raise UserError(f"{one.file} is not judged: {e}") from e

  made = {"judge": judge.model}
  return asked(found, ask, out / FILE, made, parallel), made


def by_digits(found: Sequence[Candidate], out: Path) -> tuple[Verdicts, dict[str, Any]]:
  """Verdicts of the scorer of composed digits.

  Raises:
    UserError: a prompt that is none of digits, or answers of another judge in OUT.
  """
  if strange := [one.wanted["prompt"] for one in found if "objects" not in one.wanted]:
    raise UserError(f"{strange[0]!r} is no prompt of digits: judge it by --rows or by an endpoint")
  scorer = digits_scorer.Scorer()

  def ask(one: Candidate) -> str:
    seen = scorer.read(transforms.to_rgb(one.file))
    return "yes" if digits_scorer.judge(seen, one.wanted) else "no"

  made = {"judge": "tarjax.evals.digits_scorer"}
  return asked(found, ask, out / FILE, made, 1), made


def by_rows(path: Path, found: Sequence[Candidate]) -> tuple[Verdicts, dict[str, Any]]:
  """Verdicts of GenEval's rules in a results file, ours or the official program's.

  Raises:
    UserError: it is no such file, or judges a picture for another prompt.
  """
  rows = {Path(r.get("filename", "")).parts[-3:]: r for r in geneval.read_rows(path, whole=True)}
  verdicts: Verdicts = {}
  for one in found:
    row = rows.get(Path(one.name).parts)
    if row and row["prompt"] != one.wanted["prompt"]:
      raise UserError(f"{path} has {one.name} for {row['prompt']!r}, not {one.wanted['prompt']!r}")
    verdicts[one.name] = bool(row["correct"]) if row else None
  return verdicts, {"judge": "GenEval's rules", "rows": str(path)}


def asked(
  found: Sequence[Candidate],
  ask: Callable[[Candidate], str],
  path: Path,
  made: dict[str, Any],
  parallel: int,
) -> Verdicts:
  """Asks what was not asked before; answers are on disk before the next `parallel` are asked.

  An answer belongs to the bytes of a picture and the question. Raises UserError where the file has
  answers of another judge.
  """
  kept = Answers(path, made | {"question": MATCHES}, resume=True)
  keys = [("match", digest(one.file), one.question) for one in found]
  left = [i for i, key in enumerate(keys) if kept.get(*key) is None]
  if len(left) < len(found):
    print(f"{len(found) - len(left)} of {len(found)} pictures are judged")
  with ThreadPoolExecutor(parallel) as pool:
    for start in range(0, len(left), parallel):
      part = left[start : start + parallel]
      answers = pool.map(lambda i: ask(found[i]) if whole(found[i].file) else "damaged", part)
      for i, answer in zip(part, answers, strict=True):
        kept.add("match", [(*keys[i][1:], answer)])
      if start // parallel % 64 == 63:
        print(f"{len(found) - len(left) + start + len(part)} of {len(found)} judged", flush=True)
  said = [verdict(kept.get(*key) or "") for key in keys]
  kept.close()
  return {one.name: yes for one, yes in zip(found, said, strict=True)}


def digest(file: Path) -> int:
  """48 bits that name a picture, which a JSON number holds."""
  return int(hashlib.sha256(file.read_bytes()).hexdigest()[:12], 16)


def whole(file: Path) -> bool:
  try:
    transforms.to_rgb(file)
  except (OSError, ValueError):
    return False
  return True
