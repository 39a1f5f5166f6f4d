"""Dots with whiskers, row by row, as inline SVG and as PNG from the same marks."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from tarjax.evals.report_charts import linear_ticks, short

ROW, HEAD, FOOT = 26, 40, 30  # heights
NAME, NAMES = 8, 214  # where names begin, and their room; longer ones push the rest to the right
LEFT, RIGHT, WIDTH = 300.0, 560.0, 920  # of the axis, of all
PAPER, OURS = 282.0, 580.0  # where the numbers beside it end, and begin
SCALE = 2  # pixels of the PNG per unit
COLOURS = {
  "grid": "#e3e1da", "zero": "#667079", "whisker": "#2f66a8", "dot": "#2f66a8",
  "label": "#1d2126", "tick": "#667079", "title": "#1d2126",
}  # fmt: skip
PAPERS = "#fbfaf7"
SIZES = {"label": 12.5, "tick": 11.0, "title": 14.0}
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}  # Pillow's
WIDER = 1.2  # a browser's font, at most, than the one of the PNG


class Line(NamedTuple):
  """A row of a panel: a value with its interval, a note at the right, the paper's at the left."""

  name: str
  value: float | None
  low: float | None
  high: float | None
  paper: str
  note: str


class Panel(NamedTuple):
  title: str
  lines: Sequence[Line]
  zero: bool  # whether zero is on the axis, and marked


class Mark(NamedTuple):
  """A line from (x, y) to (x2, y2), a dot, or a text with its start, middle or end at x."""

  kind: str
  x: float
  y: float
  x2: float = 0.0
  y2: float = 0.0
  text: str = ""
  anchor: str = "start"


def marks(panels: Sequence[Panel]) -> tuple[list[Mark], int, int]:
  """All marks, and the width and height of the figure."""
  font = ImageFont.load_default(SIZES["label"])
  names = [font.getlength(line.name) for panel in panels for line in panel.lines]
  aside = max(0, round(WIDER * max(names, default=0)) - NAMES)
  found: list[Mark] = []
  top = 0
  for panel in panels:
    found += _panel(panel, top, aside)
    top += HEAD + ROW * len(panel.lines) + FOOT
  return found, WIDTH + aside, top


def _panel(panel: Panel, top: int, aside: int) -> list[Mark]:
  ends = [x for line in panel.lines for x in (line.value, line.low, line.high) if x is not None]
  ends += [0.0] if panel.zero or not ends else []
  ticks = linear_ticks(min(ends), max(ends))
  low, high = ticks[0], ticks[-1]
  left, paper, ours = (x + aside for x in (LEFT, PAPER, OURS))
  first, last = top + HEAD - 8, top + HEAD + ROW * len(panel.lines) - 6

  def px(x: float) -> float:
    return left + (RIGHT - LEFT) * (x - low) / (high - low)

  found = [
    Mark("title", NAME, top + 20, text=panel.title),
    Mark("tick", ours, top + 20, text="ours"),
  ]
  if any(line.paper for line in panel.lines):
    found.append(Mark("tick", paper, top + 20, text="paper", anchor="end"))
  for tick in ticks:
    kind = "zero" if panel.zero and tick == 0 else "grid"
    found.append(Mark(kind, px(tick), first, px(tick), last))
    found.append(Mark("tick", px(tick), last + 16, text=short(tick), anchor="middle"))
  for i, line in enumerate(panel.lines):
    y = top + HEAD + i * ROW + 8
    found.append(Mark("label", NAME, y, text=line.name))
    found.append(Mark("tick", paper, y, text=line.paper, anchor="end"))
    found.append(Mark("label", ours, y, text=line.note))
    if line.low is not None and line.high is not None:
      found.append(Mark("whisker", px(line.low), y - 4, px(line.high), y - 4))
    if line.value is not None:
      found.append(Mark("dot", px(line.value), y - 4))
  return found


def svg(panels: Sequence[Panel], label: str) -> str:
  """The figure as one `<svg>`, coloured by the page's CSS."""
  found, width, height = marks(panels)
  parts = []
  for m in found:
    if m.text:
      kind = f"{'tick' if m.kind == 'tick' else 'label'} {m.anchor}"
      parts.append(f'<text class="{kind}" x="{m.x:.1f}" y="{m.y:.1f}">{escape(m.text)}</text>')
    elif m.kind == "dot":
      parts.append(f'<circle class="bar" cx="{m.x:.1f}" cy="{m.y:.1f}" r="4.5"/>')
    elif m.kind in ("grid", "zero", "whisker"):
      kind = {"grid": "grid", "zero": "axis", "whisker": "line"}[m.kind]
      parts.append(f'<path class="{kind}" d="M{m.x:.1f} {m.y:.1f}L{m.x2:.1f} {m.y2:.1f}"/>')
  return (
    f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
    f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
  )


def png(panels: Sequence[Panel], path: Path) -> None:
  """The same figure as a PNG file."""
  found, width, height = marks(panels)
  image = Image.new("RGB", (width * SCALE, height * SCALE), PAPERS)
  draw: Any = ImageDraw.Draw(image)
  fonts = {kind: ImageFont.load_default(size * SCALE) for kind, size in SIZES.items()}
  for m in found:
    at, colour = (m.x * SCALE, m.y * SCALE), COLOURS[m.kind]
    if m.text:
      draw.text(at, m.text, colour, fonts[m.kind], anchor=ANCHORS[m.anchor])
    elif m.kind == "dot":
      draw.circle(at, 4.5 * SCALE, colour)
    elif m.kind in ("grid", "zero", "whisker"):
      thick = SCALE * (2 if m.kind == "whisker" else 1)
      draw.line((*at, m.x2 * SCALE, m.y2 * SCALE), colour, thick)
  new = path.with_name(path.name + ".new")
  image.save(new, "png", optimize=True)
  new.replace(path)
