"""What a table's report says of known scores, of crashes and of what is missing."""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont
from scipy import stats
from test_report import check
from tiny_table import make, page

from tarjax import evaluate
from tarjax.ablations import Effect, Measured, State
from tarjax.evals import intervals, table_report, table_results, table_scores
from tarjax.evals.table_results import AGREES, DOES_NOT, UNDECIDED, Cell, Estimate

VALUES = {"a": (0.5, 0.6, 0.52), "b": (0.75, 0.84, 0.78), "c": (0.51, 0.61, 0.53)}


def made(tmp_path: Path, values=VALUES, missing=(), failed=(), told=True) -> tuple[str, Path]:
  """A page, and an OUT whose runs are done but for some."""
  file, out = page(tmp_path, values=values, told=told), tmp_path / "out"
  for key in make(values=values).of_rows(list(values)):
    (out / key).mkdir(parents=True)
    row, seed = key[0], key.partition("/")[0][2:]
    if key not in (*missing, *dict(failed)):
      value = values[row][int(seed)] if key.endswith("score") else 0
      (out / key / "done.json").write_text(json.dumps({"value": value}))
  for key, verdict in failed:
    record = {"verdict": verdict, "code": 7, "tail": ["<the end>", "of | it"]}
    (out / f"{key}.failed.json").write_text(json.dumps(record))
  (out / "table.json").write_text(json.dumps({"page": "page.py", "mini": True}))
  return file, out


def report(file: str, out: Path) -> tuple[str, str]:
  assert evaluate.main(["--report", file, "--workdir", str(out)], time.time()) == 0
  return (out / "report.md").read_text(), (out / "report.html").read_text()


def test_numbers_intervals_and_verdicts(tmp_path, capsys):
  text, html = report(*made(tmp_path))
  mean, reach = np.mean(VALUES["b"]), stats.sem(VALUES["b"]) * stats.t.ppf(0.975, 2)
  assert f"| row b | 90.0 | {mean:.3f} [{mean - reach:.3f}, {mean + reach:.3f}] |" in text
  differences = np.subtract(VALUES["b"], VALUES["a"])
  mean, reach = differences.mean(), stats.sem(differences) * stats.t.ppf(0.975, 2)
  assert reach < 0.03  # seed by seed, much surer than the rows are
  ours = f"+{mean:.3f} [+{mean - reach:.3f}, +{mean + reach:.3f}], 3 seeds"
  assert f"| b is above a | understanding | +10.0 | {ours} | agrees with the paper |" in text
  assert "| c is below b | understanding | -10.0 | -0.24" in text
  assert "| c is not below a | understanding | +0.000 | +0.010" in text
  assert "| a does not converge |  |  |  | does not agree |" in text
  assert (
    text.startswith("# Table 0 (mini)\n\nDoes it?\n")
    and "A note." in text
    and "in direction, not in size" in text
  )
  assert "b is above a: agrees with the paper" in capsys.readouterr().out
  page = check(html)
  assert {"svg", "table"} <= set(page.seen) and any(ours in t for t in page.texts)
  picture = np.asarray(Image.open(tmp_path / "out/report.png"))
  assert picture.shape[2] == 3 and (picture != picture[0, 0]).any(-1).sum() > 2000


def test_no_room_is_kept_for_what_the_paper_does_not_say(tmp_path):
  text, html = report(*made(tmp_path, told=False))
  assert "|  | understanding |\n" in text and "| row b | 0.790 [" in text
  assert "Findings" not in text + html and "paper</td>" not in html
  check(html)


def test_what_is_missing_and_what_crashed_is_shown(tmp_path):
  failed = (("a-0/mllm", "crashed"), ("b-1/mllm", "not converged"))
  missing = ("a-0/score", "b-1/score", "c-0/score", "c-1/score", "c-2/score")
  text, html = report(*made(tmp_path, missing=missing, failed=failed))
  rows = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| row")}
  assert "1 of 3 crashed" in rows["row a"] and "0.560 [" in rows["row a"]
  assert "1 of 3 not converged" in rows["row b"] and "3 of 3 missing" in rows["row c"]
  assert "| c is below b | understanding | -10.0 | no difference measured | undecided |" in text
  assert "| a does not converge |  |  |  | undecided |" in text
  assert "## a-0/mllm: crashed, exit code 7\n\n```\n<the end>\nof | it\n```" in text
  assert "&lt;the end&gt;" in html
  check(html)


@pytest.mark.parametrize("seeds, verdict", [(3, UNDECIDED), (1, AGREES)])
def test_one_seed_of_several_decides_nothing(seeds, verdict):
  table = make(values={row: values[:seeds] for row, values in VALUES.items()})
  (effect,) = (e for e in table.effects if e.says == "b is above a")
  states = (State.DONE, *(State.MISSING for _ in range(seeds - 1)))

  def cell(value):
    found = Measured(value, value - 0.01, value + 0.01)
    return Cell(table_results.estimate([found]), (found, *(None for _ in states[1:])), states)

  cells = {"a": {effect.metric: cell(0.5)}, "b": {effect.metric: cell(0.8)}}
  found = table_results.finding(table, cells, effect)
  assert found.ours and found.ours.runs == 1 and found.ours.low > 0.2 and found.verdict == verdict


@pytest.mark.parametrize("better, verdict", [("b", "as expected"), ("a", "not as expected")])
def test_what_the_paper_has_no_figures_for_does_not_agree_with_it(better, verdict):
  table = make()
  rows = {name: dataclasses.replace(row, paper={}) for name, row in table.rows.items()}
  table = dataclasses.replace(table, rows=rows)
  (effect,) = (e for e in table.effects if e.says == "b is above a")
  cells = {name: {effect.metric: sure(0.8 if name == better else 0.5)} for name in "ab"}
  assert table_results.finding(table, cells, effect).verdict == verdict


def sure(value: float) -> Cell:
  found = (Measured(value - 0.01, None, None), Measured(value + 0.01, None, None))
  return Cell(table_results.estimate(found), found, (State.DONE, State.DONE))


def test_a_table_that_collapses_everywhere_agrees(tmp_path):
  failed = [(f"a-{seed}/mllm", "not converged") for seed in range(3)]
  missing = [f"a-{seed}/score" for seed in range(3)]
  text, _ = report(*made(tmp_path, missing=missing, failed=failed))
  assert "| a does not converge |  |  |  | agrees with the paper |" in text
  assert "| row a | 80.0 | 3 of 3 not converged |" in text


@pytest.mark.parametrize(
  "expected, low, high, verdict",
  [
    ("higher", 0.01, 0.2, AGREES),
    ("higher", -0.01, 0.2, UNDECIDED),
    ("higher", -0.2, -0.01, DOES_NOT),
    ("lower", -0.2, -0.01, AGREES),
    ("lower", -0.2, 0.01, UNDECIDED),
    ("lower", 0.01, 0.2, DOES_NOT),
    ("not lower", -0.04, 0.1, AGREES),
    ("not lower", -0.06, 0.1, UNDECIDED),
    ("not lower", -0.2, -0.06, DOES_NOT),
    ("higher", None, None, UNDECIDED),
  ],
)
def test_verdicts(expected, low, high, verdict):
  effect = Effect("", "und", "a", "b", expected, 0.05)
  assert table_results.judge(effect, Estimate(0.0, low, high, 3)) == verdict


def test_one_run_is_as_sure_as_its_own_interval():
  def cell(*measured):
    return table_results.Cell(table_results.estimate(measured), measured, ("done",))

  one, other = cell(Measured(0.5, 0.4, 0.6)), cell(Measured(0.2, 0.15, 0.25))
  found = table_results.difference(one, other)
  assert found and found[:2] == pytest.approx((0.3, 0.3 - (0.1**2 + 0.05**2) ** 0.5))
  assert table_results.difference(one, cell(Measured(0.2))) == (0.3, None, None, 1)
  assert table_results.difference(one, cell()) is None
  assert intervals.of_runs([1.0, 2.0, 3.0])[1] == pytest.approx(2 - 4.302653 / 3**0.5, rel=1e-5)


def test_scores_of_digits_and_of_benchmarks(tmp_path):
  scores = {
    "settings": {"prompts": 240},
    "i2t": dict.fromkeys("abcdef", 0.5),
    "t2i": {"one": 1.0, "two": 0.0, "overall": 0.5},
    "reconstruction": {"vqvae": {"digit": 0.9}},
  }
  (tmp_path / "scores.json").write_text(json.dumps(scores))
  found = table_scores.shares("i2t", tmp_path)
  half = 1.96 * (0.25 / 240) ** 0.5  # as of 240 questions
  assert found == pytest.approx((0.5, 0.5 - half, 0.5 + half))
  assert table_scores.shares("t2i", tmp_path) == (0.5, 0.5, 0.5)
  assert table_scores.kept("vqvae", tmp_path) == (0.9, None, None)
  assert table_scores.und(tmp_path) is None and table_scores.shares("t2i_dif", tmp_path) is None

  def scored(share):
    return {"value": share, "low": share - 0.1, "high": share + 0.1}

  parts = {"pope": {"f1": scored(0.885)}, "seed": {"image": scored(0.73)}}
  parts |= {"mme": {"perception": scored(1571)}, "gqa": {"exact_match": scored(0.31)}}
  text = {"benchmarks": {name: {"scores": found} for name, found in parts.items()}}
  (tmp_path / "scores.json").write_text(json.dumps(text))
  assert table_scores.und(tmp_path) == (pytest.approx(100 * 4 / 5), None, None)
  times = table_scores.benchmark("gqa", "exact_match", tmp_path, 100)
  assert times == pytest.approx((31, 21, 41))
  (tmp_path / "dpg.json").write_text(json.dumps({"scores": {"dpg": scored(70.6)}}))
  assert table_scores.DPG.read(tmp_path) == pytest.approx((70.6, 70.5, 70.7))
  (tmp_path / "run").mkdir()
  (tmp_path / "mllm").mkdir()
  lines = [{"step": s, "loss": 9 - s} for s in (2, 4, 6)]
  text = "\n".join(map(json.dumps, lines))
  (tmp_path / "mllm/metrics.jsonl").write_text(text)
  assert table_scores.logged("mllm", "loss", 5, tmp_path / "run") == (5, None, None)
  assert table_scores.logged("mllm", "loss", 1, tmp_path / "run") is None


@pytest.mark.parametrize(
  "argv, sentence",
  [
    (["--workdir", "{out}"], "--workdir needs --report"),
    (["--workdir", "{out}/x", "--report", "page.py"], "x holds no table"),
    (["--workdir", "{out}", "--report", "other.py"], "out holds page.py, not other.py"),
    (["--workdir", "{out}", "--report", "far/page.py"], "there is no table far/page.py"),
    (["--out", "x.json"], "--model is missing"),
    (["--model", "{out}"], "--out is missing"),
    (["--model", "x", "--out", "x.json", "--detokenizer", "gan"], "must be ar or dif, not gan"),
  ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, argv, sentence):
  _, out = made(tmp_path)
  assert evaluate.main([a.format(out=out) for a in argv], time.time()) == 2
  said = capsys.readouterr().err
  assert sentence in said and said.startswith("error: ") and said.count("\n") == 1


def test_damaged_scores_are_named(tmp_path, capsys):
  file, out = made(tmp_path)
  (out / "b-1/score/done.json").write_text("{")
  assert evaluate.main(["--report", file, "--workdir", str(out)], time.time()) == 2
  assert "b-1/score/done.json is damaged" in capsys.readouterr().err


def test_the_figure_has_no_row_without_room():
  lines = [table_report.Line("a", None, None, None, "", "missing")]
  found, width, height = table_report.table_figure.marks([table_report.Panel("x", lines, False)])
  assert {m.kind for m in found} == {"title", "tick", "label", "grid"} and height > 60
  name = "one row with a long title - and another row with a long title"
  lines.append(table_report.Line(name, 0.5, 0.4, 0.6, "+0.1", "ours"))
  wider, more, _ = table_report.table_figure.marks([table_report.Panel("x", lines, False)])
  (paper,) = (m for m in wider if m.text == "+0.1")
  font = ImageFont.load_default(table_report.table_figure.SIZES["label"])
  begins = paper.x - font.getlength(paper.text)
  assert begins > 8 + font.getlength(name) and more > width
  assert more - width == min(m.x for m in wider if m.kind == "grid") - min(
    m.x for m in found if m.kind == "grid"
  )
