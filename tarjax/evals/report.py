"""report.html: one self-contained page about a finished run, without scripts and without network.

The page shows what it is given and leaves out what is missing; nothing is measured here.
"""

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from tarjax.evals.digits import Answer, Drawing, Rebuilt
from tarjax.evals.report_charts import Bar, line_chart, score_bars, size_bars
from tarjax.evals.report_style import STYLE
from tarjax.evals.report_tables import TITLES, VERSIONS, look_up, name_of, tables, written

Run = list[dict]  # the lines of metrics.jsonl
PER_CATEGORY = 8  # pictures shown
PER_KIND = 4  # questions shown
REBUILT = 8  # reconstructions shown


def read_run(directory: Path) -> Run:
  """The lines of a run's metrics.jsonl; [] when there is none. A torn last line is left out."""
  path, lines = directory / "metrics.jsonl", []
  if path.exists():
    for text in path.read_text().splitlines():
      try:
        lines.append(json.loads(text))
      except json.JSONDecodeError:
        break
  return lines


def build(
  scores: dict,
  runs: dict[str, Run],
  drawings: Sequence[Drawing] = (),
  answers: Sequence[Answer] = (),
  rebuilt: Sequence[Rebuilt] = (),
) -> str:
  """The page as text.

  Args:
    scores: what stands in scores.json.
    runs: stage -> lines of its metrics.jsonl.
    drawings, answers, rebuilt: the samples of an `evals.digits.Evaluator`.
  """
  sections = [
    ("Scores", _scores(scores)),
    ("Pictures from prompts", _drawings(scores, drawings)),
    ("Reconstruction", _rebuilt(scores, rebuilt)),
    ("Captions and answers", _answers(answers)),
    ("Training", _losses(runs)),
    ("Codebooks", _codebooks(runs, scores)),
    ("Time and memory", _stages(scores)),
    ("All numbers", tables(scores)),
  ]
  body = "".join(
    f'<section id="s{i}"><h2><span>{i}</span>{name}</h2>{text}</section>'
    for i, (name, text) in enumerate(sections, 1)
  )
  links = "".join(f'<a href="#s{i}">{name}</a>' for i, (name, _) in enumerate(sections, 1))
  head = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Tar on digits</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<style>{STYLE}</style></head>"
  )
  return f"{head}<body><main>{_headline(scores)}<nav>{links}</nav>{body}</main></body></html>\n"


def _headline(scores: dict) -> str:
  stages, settings = scores.get("stages", {}), scores.get("settings", {})
  seconds = sum(s.get("seconds") or 0 for s in stages.values())
  peak = max([s.get("peak_gb") or 0 for s in stages.values()], default=0)
  facts = [f"{seconds / 60:.1f} minutes in all stages, added up", f"{peak:.1f} GB peak memory"]
  facts += [f"{name.replace('_', ' ')} {value}" for name, value in settings.items()]
  tiles = (
    ("t2i/overall", "Pictures that show what the prompt says", "mean of six categories"),
    ("t2i/single_object", "Pictures of a single digit", "read as the digit asked for"),
    ("i2t/digit", "Digits named", "held-out handwriting"),
    ("i2t/yesno", "Yes/no questions", "answered correctly"),
    ("ta_tok/rec_cosine", "TA-Tok feature cosine", "reconstruction against the teacher"),
  )
  cells = []
  for key, name, note in tiles:
    value = look_up(scores, key)
    if value is None:
      continue
    share = f"{value:.3f}" if key.endswith("cosine") else f"{value:.0%}"
    marks = [
      f"{word} {bound:.0%}"
      for word in ("ceiling", "chance")
      if (bound := look_up(scores, f"{word}/{key}")) is not None
    ]
    small = "".join(f"<small>{escape(x)}</small>" for x in (note, " · ".join(marks)))
    cells.append(f'<div class="tile"><b>{share}</b><h3>{name}</h3>{small}</div>')
  return (
    "<header><h1>Tar, small, on real handwriting</h1><p>Every stage of Tar (arXiv 2506.18898) "
    "trained on composed scenes of scanned digits. Pictures are judged by a reader that sees "
    "pixels only; its own ceiling and chance stand beside each score.</p>"
    f'<p class="facts">{escape(" · ".join(facts))}</p></header><div class="tiles">'
    f"{''.join(cells)}</div>"
  )


def _scores(scores: dict) -> str:
  charts = []
  for key, title in (("t2i", "Prompt to picture"), ("i2t", "Picture to words")):
    rows = [
      Bar(
        name_of(name),
        value,
        look_up(scores, f"ceiling/{key}/{name}"),
        look_up(scores, f"chance/{key}/{name}"),
      )
      for name, value in scores.get(key, {}).items()
    ]
    if rows:
      charts.append(f"<figure><figcaption>{title}</figcaption>{score_bars(rows)}</figure>")
  legend = (
    '<p class="note"><span class="key ceiling"></span>ceiling: the reader on true pictures '
    '<span class="key chance"></span>chance: the picture, or the answer, of another prompt</p>'
  )
  return f'<div class="two">{"".join(charts)}</div>{legend}' if charts else _none("scores")


def _drawings(scores: dict, drawings: Sequence[Drawing]) -> str:
  blocks = []
  for category in dict.fromkeys(d.category for d in drawings):
    shown = [d for d in drawings if d.category == category][:PER_CATEGORY]
    cells = "".join(_drawing(d) for d in shown)
    value, other = (look_up(scores, f"{group}/{category}") for group in ("t2i", "t2i_dif"))
    share = "" if value is None else f" <small>{value:.0%} of all prompts</small>"
    share += "" if other is None else f" <small>{other:.0%} by Dif-DTok</small>"
    blocks.append(f'<h3>{name_of(category)}{share}</h3><div class="grid">{cells}</div>')
  note = '<p class="note">The first prompts of each category, as drawn; none was picked.'
  if any(d.dif for d in drawings):
    note += " Left AR-DTok, right Dif-DTok: the same words."
  note += "</p>"
  return note + "".join(blocks) if blocks else _none("pictures")


def _drawing(d: Drawing) -> str:
  """One prompt's picture, and Dif-DTok's of the same words beside it."""
  pictures, marks, read = _picture(d.image, d.prompt), _mark(d.right), escape(d.read)
  if d.dif:
    pictures += _picture(d.dif.image, f"{d.prompt}, by Dif-DTok")
    marks, read = marks + _mark(d.dif.right), f"{read} | {escape(d.dif.read)}"
  return (
    f'<figure class="{_verdict(d.right)}">{pictures}<figcaption>{marks} {escape(d.prompt)}'
    f"<small>read: {read}</small></figcaption></figure>"
  )


def _rebuilt(scores: dict, rebuilt: Sequence[Rebuilt]) -> str:
  if not rebuilt:
    return _none("reconstructions")
  rows = []
  for key, title in VERSIONS.items():
    images = [r.original if key == "original" else r.versions.get(key) for r in rebuilt[:REBUILT]]
    cells = "".join(f"<td>{_picture(x, title)}</td>" for x in images if x is not None)
    if not cells:  # of a de-tokenizer that is not there
      continue
    facts = look_up(scores, f"reconstruction/{key}") or {}
    note = ", ".join(f"{name_of(name)} {written(name, value)}" for name, value in facts.items())
    rows.append(f"<tr><th>{title}<small>{escape(note)}</small></th>{cells}</tr>")
  return (
    f'<div class="wide"><table class="pictures">{"".join(rows)}</table></div><p class="note">The '
    "VQVAE sees the pixels; the scales go through TA-Tok's 144, 36 or 16 words and AR-DTok, which "
    "draws anew what they mean. Digit and colour: the share that the reader finds in its place.</p>"
  )


def _answers(answers: Sequence[Answer]) -> str:
  cells = []
  for kind in dict.fromkeys(a.kind for a in answers):
    for a in [a for a in answers if a.kind == kind][:PER_KIND]:
      truth = "" if a.right else f"<small>expected: {escape(a.expected)}</small>"
      cells.append(
        f'<div class="ask {_verdict(a.right)}">{_picture(a.image, a.expected)}<div>'
        f"<small>{escape(a.question)}</small><p>{_mark(a.right)} {escape(a.said) or '(nothing)'}"
        f"</p>{truth}</div></div>"
      )
  return f'<div class="asks">{"".join(cells)}</div>' if cells else _none("answers")


def _losses(runs: dict[str, Run]) -> str:
  charts = []
  for stage, lines in runs.items():
    keys = sorted({k for line in lines for k in line if k == "loss" or k.endswith("/loss")})
    keys.sort(key=lambda k: k != "loss")
    series = {_series(key): _curve(lines, key) for key in keys}
    if any(series.values()):
      chart = line_chart(series, y_label="loss", log=None)
      title = TITLES.get(stage, stage)
      charts.append(f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>")
  return f'<div class="charts">{"".join(charts)}</div>' if charts else _none("loss curves")


def _codebooks(runs: dict[str, Run], scores: dict) -> str:
  charts = []
  for stage, lines in runs.items():
    for key in ("usage", "perplexity"):
      points = _curve(lines, f"codes_{key}")
      if points:
        title = f"{TITLES.get(stage, stage)}: codebook {key}"
        chart = line_chart({key: points}, y_label=key)
        charts.append(f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>")
  facts = {k: v for k, v in scores.get("ta_tok", {}).items() if not isinstance(v, dict)}
  note = ", ".join(f"{name_of(k)} {written(k, v)}" for k, v in facts.items())
  note = f'<p class="note">TA-Tok on held-out pictures: {escape(note)}.</p>' if note else ""
  if not charts:
    return note or _none("codebook curves")
  return f'{note}<div class="charts">{"".join(charts)}</div>'


def _stages(scores: dict) -> str:
  stages = scores.get("stages", {})
  if not stages:
    return _none("stages")
  names = {key: TITLES.get(key, str(key)) for key in stages}
  time = [Bar(names[k], s.get("seconds")) for k, s in stages.items()]
  memory = [Bar(names[k], s.get("peak_gb")) for k, s in stages.items()]
  charts = (("Seconds", size_bars(time, "s")), ("Peak memory", size_bars(memory, "GB")))
  cells = "".join(f"<figure><figcaption>{n}</figcaption>{c}</figure>" for n, c in charts)
  return f'<div class="two">{cells}</div>'


def _curve(lines: Run, key: str) -> list[tuple[float, float]]:
  return [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]


def _series(key: str) -> str:
  return "training" if key == "loss" else key.removesuffix("/loss")


def _verdict(right: bool) -> str:
  return "right" if right else "wrong"


def _mark(right: bool) -> str:
  mark = ("✓", "right") if right else ("✗", "wrong")
  return f'<b class="mark" title="{mark[1]}">{mark[0]}</b>'


def _none(what: str) -> str:
  return f'<p class="none">This run has no {what}.</p>'


def _picture(image: np.ndarray, text: str) -> str:
  """uint8[y x 3] -> an `<img>` that carries its PNG."""
  file = io.BytesIO()
  Image.fromarray(np.asarray(image, np.uint8)).save(file, "png", optimize=True)
  data = base64.b64encode(file.getvalue()).decode()
  return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
