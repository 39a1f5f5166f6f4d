"""A table of three rows that share a run, made of `fake_run`s."""

from pathlib import Path

from tarjax.ablations import Effect, Folder, Measured, Metric, Row, Run, Table, same
from tarjax.evals.table_scores import read

PAGE = '''
"""Does it?

A page for tests.
"""

from tiny_table import make


def get_table(mini):
  return make({arguments})
'''


def page(folder: Path, **arguments) -> str:
  """A file that declares `make(**arguments)`."""
  given = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
  file = folder / "page.py"
  file.write_text(PAGE.replace("{arguments}", given))
  return str(file)


def value(run: Path) -> Measured | None:
  found = read(run / "done.json")
  return Measured(found["value"]) if found else None


def fake(*words: str, reads: tuple[str, ...] = ()) -> Run:
  return Run("fake_run", ("{run}", *words), reads)


def make(code: int = 0, steps: int = 1, seconds: float = 0.0, values=None, told=True) -> Table:
  """Rows a, b and c, each with two seeds; a's training of seed 0 ends with `code`.

  Args:
    code: exit code of that run.
    steps, seconds: of the run that all share.
    values: {row: the scores of its seeds}.
    told: whether the paper has numbers and findings.
  """
  values = values or {"a": (0.5, 0.6), "b": (0.7, 0.8), "c": (0.5, 0.5)}
  shared = fake("--steps", str(steps), "--seconds", str(seconds), reads=("start",))
  folders = {"shared": Folder({"common": shared})}
  for row in values:
    for seed, score in enumerate(values[row]):
      bad = str(code if (row, seed) == ("a", 0) else 0)
      folders[f"{row}-{seed}"] = Folder(
        {
          "mllm": fake("--code", bad, reads=("common",)),
          "score": fake("--value", str(score), reads=("mllm", "start")),
        },
        {"common": "shared/common"},
      )
  rows = {
    row: Row(
      f"row {row}",
      same([f"{row}-{seed}/score" for seed in range(len(values[row]))], "und"),
      {"und": paper} if told else {},
    )
    for row, paper in zip(values, (80.0, 90.0, 80.0), strict=True)
  }
  effects = (
    Effect("b is above a", "und", "b", "a"),
    Effect("c is below b", "und", "c", "b", "lower"),
    Effect("c is not below a", "und", "c", "a", "not lower", 0.05),
    Effect("a does not converge", "und", "a", expected="not converged"),
  )
  metrics = {"und": Metric("understanding", value)}
  return Table("Table 0", metrics, rows, folders, effects if told else (), {}, "A note.")
