"""report.md, report.html and report.png of a table: the paper's numbers, ours, and the verdicts."""

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from tarjax import ablations
from tarjax.ablations import Table
from tarjax.config import UserError, revision
from tarjax.evals import table_figure, table_results
from tarjax.evals.report import read_run
from tarjax.evals.report_charts import line_chart
from tarjax.evals.report_style import STYLE
from tarjax.evals.table_figure import Line, Panel
from tarjax.evals.table_results import Cell, Estimate, Finding, Results

METHOD = (
  "Intervals are of 95%: over runs that differ in their seed alone by Student's t, of a single run "
  "by drawing its questions again. Differences are taken seed by seed. A finding agrees with the "
  "paper when its whole interval does, does not when its whole interval is on the other side, and "
  "is undecided otherwise, and as long as one seed of several is all there is. Where the paper has "
  "no figures for it, it is as expected, or not."
)
MINI = "The twin on digits: its scores are shares in [0, 1], to be compared with the paper's in "
MINI += "direction, not in size."


def write(page: str, out: Path) -> None:
  """Writes the three files into OUT.

  Raises:
    UserError: OUT holds no table, or another.
  """
  made = out / ablations.MADE
  if not made.is_file():
    raise UserError(f"{out} holds no table: launch/ablation.sh makes it")
  whose = json.loads(made.read_text())
  if whose["page"] != Path(page).name:
    raise UserError(f"{out} holds {whose['page']}, not {Path(page).name}")
  table = ablations.load(page, whose["mini"])
  results = table_results.read(table, out)
  for name, text in (
    ("report.md", markdown(table, results, whose["mini"])),
    ("report.html", html(table, results, whose["mini"], out)),
  ):
    new = out / f"{name}.new"
    new.write_text(text)
    new.replace(out / name)
  table_figure.png(panels(table, results), out / "report.png")
  for found in results.findings:
    print(f"{found.effect.says}: {found.verdict} ({ours_of(found)})")
  print(f"report: {out / 'report.md'}, .html, .png")


def number(value: float | None, sign: bool = False) -> str:
  """Three digits after the point of small numbers, one of large ones."""
  if value is None:
    return ""
  return f"{value:{'+' if sign else ''}.{1 if abs(value) >= 10 else 3}f}"


def interval(found: Estimate | None, sign: bool = False) -> str:
  """ "0.573 [0.551, 0.595]"."""
  if found is None:
    return ""
  ends = "" if found.low is None else f" [{number(found.low, sign)}, {number(found.high, sign)}]"
  return number(found.value, sign) + ends


def ours(cell: Cell) -> str:
  """The estimate, or what became of the runs; both where some are missing."""
  return "; ".join(filter(None, (interval(cell.estimate), cell.trouble)))


def ours_of(found: Finding) -> str:
  if found.ours is None:
    return "no difference measured" if found.effect.than else ""
  return f"{interval(found.ours, sign=True)}, {found.ours.runs} seed{'s' * (found.ours.runs > 1)}"


def grid(table: Table, results: Results) -> Iterator[list[str]]:
  """The table's rows with a head: ours of each metric, after the paper's where it has any."""
  told = {
    m for m in table.metrics if any(row.paper.get(m) is not None for row in table.rows.values())
  }
  head = [""]
  for name, metric in table.metrics.items():
    head += [f"{metric.title}, paper", f"{metric.title}, ours"] if name in told else [metric.title]
  yield head
  for name, row in table.rows.items():
    cells = [row.title]
    for metric in table.metrics:
      cell = results.cells[name].get(metric)
      cells += [number(row.paper.get(metric))] if metric in told else []
      cells.append(ours(cell) if cell else "")
    yield cells


def effects(table: Table, results: Results) -> Iterator[list[str]]:
  """The findings with a head."""
  yield ["finding", "metric", "paper's difference", "ours", "verdict"]
  for found in results.findings:
    metric = table.metrics[found.effect.metric].title if found.effect.than else ""
    yield [found.effect.says, metric, number(found.paper, True), ours_of(found), found.verdict]


def crashes(results: Results) -> Iterator[tuple[str, str]]:
  """(what happened to a run, its last lines)."""
  for key, found in results.crashes.items():
    yield f"{key}: {found['verdict']}, exit code {found['code']}", "\n".join(found["tail"])


def notes(table: Table, mini: bool) -> list[str]:
  code = f"Code: {revision() or 'unknown revision'}."
  return [n for n in (MINI if mini else "", table.note, METHOD, code) if n]


def markdown(table: Table, results: Results, mini: bool) -> str:
  """report.md."""
  lines = [f"# {table.title}{' (mini)' if mini else ''}", "", table.question, ""]
  lines += [*_markdown(list(grid(table, results))), ""]
  if results.findings:
    lines += ["## Findings", "", *_markdown(list(effects(table, results))), ""]
  for title, text in crashes(results):
    lines += [f"## {title}", "", "```", text, "```", ""]
  lines += [line for note in notes(table, mini) for line in (note, "")]
  return "\n".join(lines)


def _markdown(rows: Sequence[Sequence[str]]) -> Iterator[str]:
  for i, row in enumerate(rows):
    yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    if not i:
      yield "| " + " | ".join("---" for _ in row) + " |"


def html(table: Table, results: Results, mini: bool, out: Path) -> str:
  """report.html: self-contained, without scripts."""
  parts = [
    f"<header><h1>{escape(table.title)}</h1><p>{escape(table.question)}</p>"
    f'<p class="facts">{"mini, " if mini else ""}{escape(str(out))}</p></header>',
    f"<section>{table_figure.svg(panels(table, results), table.title)}</section>",
    f"<section><h2>The table</h2>{_html(list(grid(table, results)))}</section>",
  ]
  if results.findings:
    found = _html(list(effects(table, results)))
    parts.append(f"<section><h2>Findings</h2>{found}</section>")
  if table.curve:
    chart = curves(table, out, *table.curve)
    parts.append(f"<section><h2>Learning curves</h2>{chart}</section>")
  for title, text in crashes(results):
    parts.append(f"<section><h2>{escape(title)}</h2><pre>{escape(text)}</pre></section>")
  parts += [f'<p class="note">{escape(note)}</p>' for note in notes(table, mini)]
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    f"<title>{escape(table.title)}</title><style>{STYLE}</style></head>"
    f"<body><main>{''.join(parts)}</main></body></html>\n"
  )


def _html(rows: Sequence[Sequence[str]]) -> str:
  head = f"<tr><th>{escape(rows[0][0])}</th>{''.join(f'<td>{escape(c)}</td>' for c in rows[0][1:])}"
  body = "".join(
    f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(c)}</td>' for c in row[1:])}</tr>"
    for row in rows[1:]
  )
  return f'<div class="wide"><table class="numbers">{head}</tr>{body}</table></div>'


def curves(table: Table, out: Path, stage: str, key: str) -> str:
  """What a stage of each row's first seed logged."""
  series = {}
  for row in table.rows.values():
    folder = next(iter(row.scores.values()))[0].partition("/")[0]
    lines = read_run(out / folder / stage)
    series[row.title] = [(line["step"], line[key]) for line in lines if key in line]
  return f"<figure>{line_chart(series, y_label=key, log=None)}</figure>"


def panels(table: Table, results: Results) -> list[Panel]:
  """The figure: one panel of each metric, and the differences."""
  found = []
  for metric, how in table.metrics.items():
    lines = []
    for name, row in table.rows.items():
      if cell := results.cells[name].get(metric):
        e = cell.estimate or Estimate(float("nan"), None, None, 0)
        value = cell.estimate.value if cell.estimate else None
        text = number(row.paper.get(metric))
        lines.append(Line(row.title, value, e.low, e.high, text, ours(cell)))
    found.append(Panel(how.title, lines, False))
  for metric, how in table.metrics.items():
    lines = []
    for f in results.findings:
      if f.effect.than and f.effect.metric == metric:
        value, low, high = f.ours[:3] if f.ours else (None, None, None)
        note = f"{number(value, True)} {f.verdict}"
        lines.append(Line(f"{name_of(table, f)}", value, low, high, number(f.paper, True), note))
    if lines:
      found.append(Panel(f"{how.title}: differences", lines, True))
  return found


def name_of(table: Table, found: Finding) -> str:
  return f"{table.rows[found.effect.row].title} - {table.rows[found.effect.than].title}"
