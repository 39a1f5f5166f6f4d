"""docs/plan.md's table, and the places that repeat its figures."""

import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLACE = re.compile(r"(\w+):([\dx]+)(, \d+ slices)? \(.*\)")


def rows(file: str) -> list[list[str]]:
  """The cells of each stage's row."""
  lines = (ROOT / file).read_text().splitlines()
  found = [line.strip("|").split("|") for line in lines if re.match(r"\| `\w+\.py[:`]", line)]
  return [[cell.strip() for cell in line] for line in found if "GiB" not in line]


def planned(file: str) -> list[tuple[float, float]]:
  """(GiB of a chip, hours) of a config's rows on one slice of v5p, as the pages tell them."""
  found = []
  for stage, place, gib, _, _, _, _, chip_hours in rows("docs/plan.md"):
    chip, shape, slices = PLACE.fullmatch(place).groups()
    if stage.startswith(f"`{file}") and chip == "v5p" and not slices:
      chips = math.prod(int(n) for n in shape.split("x"))
      found.append((float(gib), float(chip_hours.replace(",", "")) / chips))
  return found


@pytest.mark.parametrize("file", ["ta_tok", "ar_dtok", "dif_dtok", "mllm", "vqvae", "llamagen"])
def test_pages_have_memory_and_hours(file):
  page = (ROOT / "configs" / f"{file}.py").read_text().split('"""')[1].replace("\n", " ")
  told = re.findall(r"([\d.]+) GiB(?: of each)?, ([\d.]+) hours", page)
  expected = planned(f"{file}.py")
  assert len(told) == len(expected) > 0
  for (gib, hours), (want_gib, want_hours) in zip(told, expected, strict=True):
    assert float(gib) == want_gib and abs(float(hours) - want_hours) < 0.06


def test_the_readme_has_the_table():
  """Without meshes and the compiler's own estimate."""
  short = [[r[0], r[1].split(" (")[0], *r[2:4], *r[5:]] for r in rows("docs/plan.md")]
  readme = [row for row in rows("README.md") if len(row) == 7]
  assert readme == short and len(short) > 20
