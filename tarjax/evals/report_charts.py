"""Charts of the report as inline SVG: no script, colours from the page's CSS variables.

Every function returns one `<svg>` string; numbers are drawn as given, nothing is measured here.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

Points = Sequence[tuple[float, float]]
LETTER = 6.2  # width of one of a legend, about


class Bar(NamedTuple):
  """One row of a chart of bars: value and marks are on the same axis; None draws nothing."""

  name: str
  value: float | None
  ceiling: float | None = None
  chance: float | None = None


def line_chart(
  series: Mapping[str, Points],
  *,
  x_label: str = "step",
  y_label: str = "",
  log: bool | None = False,
) -> str:
  """Curves over a common x axis.

  Args:
    series: name -> (x, y) pairs; the first is drawn in the main colour, with its running mean.
    x_label: text under the axis.
    y_label: text at the top left.
    log: logarithmic y axis; points at or below zero are left out. None: where the positive values
      differ by more than a factor of five.

  Returns:
    an `<svg>` of 360 x 210 units, higher where the names have no room above the curves.
  """
  if log is None:
    positive = [y for points in series.values() for _, y in points if y > 0]
    log = bool(positive) and max(positive) > 5 * min(positive)
  kept = {name: _kept(points, log) for name, points in series.items()}
  kept = {name: points for name, points in kept.items() if points}
  if not kept:
    return '<p class="none">no points</p>'
  left, right, top, bottom = 46.0, 344.0, 24.0, 176.0
  xs = [x for points in kept.values() for x, _ in points]
  ys = [y for points in kept.values() for _, y in points]
  ticks = log_ticks(min(ys), max(ys)) if log else linear_ticks(min(ys), max(ys))
  scale = math.log10 if log else float
  low, high = scale(min(ticks[0], *ys)), scale(max(ticks[-1], *ys))
  x_ticks = [x for x in linear_ticks(0, max(xs)) if x <= max(xs) * 1.001]
  x_high = max(max(xs), 1e-9)

  def px(x):
    return left + (right - left) * x / x_high

  def py(y):
    return bottom - (bottom - top) * (scale(y) - low) / max(high - low, 1e-12)

  parts = []
  for tick in ticks:
    parts.append(f'<path class="grid" d="M{left} {py(tick):.1f}H{right}"/>')
    parts.append(_text(left - 6, py(tick) + 3.5, short(tick), "tick end"))
  for tick in x_ticks:
    parts.append(_text(px(tick), bottom + 15, short(tick), "tick middle"))
  for i, (name, points) in enumerate(kept.items()):
    points = _thinned(points)
    if i == 0 and len(points) > 20:
      parts.append(_path([(px(x), py(y)) for x, y in points], "line faint"))
      points = _smoothed(points)
    parts.append(_path([(px(x), py(y)) for x, y in points], f"line s{i}", name))
  parts.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
  parts.append(_text(right, bottom + 30, x_label, "tick end"))
  y_label += " (log)" if log else ""
  parts.append(_text(4, 12, y_label, "tick"))
  names, height = list(kept), 210
  if len(names) > 1 and sum(map(_room, names)) < right - 4 - LETTER * len(y_label):
    parts.append(_legend(names, right))
  elif len(names) > 1:
    for i, name in enumerate(names):
      parts.append(_entry(left, height + 16 * i + 8, i, name))
    height += 16 * len(names)
  return _svg(360, height, f"{y_label} by {x_label}", parts)


def score_bars(bars: Sequence[Bar]) -> str:
  """Shares from 0 to 1 as bars, each with its ceiling (solid mark) and chance (dashed mark)."""
  left, right, row = 122.0, 430.0, 26
  height = row * len(bars) + 34

  def px(x):
    return left + (right - left) * min(max(x, 0.0), 1.0)

  parts = []
  for tick in (0, 0.25, 0.5, 0.75, 1):
    parts.append(f'<path class="grid" d="M{px(tick)} 4V{height - 26}"/>')
    parts.append(_text(px(tick), height - 10, f"{tick:.0%}", "tick middle"))
  for i, bar in enumerate(bars):
    y = 8 + i * row
    parts.append(_text(left - 10, y + 12, bar.name, "label end"))
    if bar.value is None:
      parts.append(_text(left + 6, y + 12, "not measured", "tick"))
      continue
    width = px(bar.value) - left
    parts.append(f'<rect class="bar" x="{left}" y="{y}" width="{width:.1f}" height="16" rx="2"/>')
    parts.append(_text(right + 56, y + 12, f"{bar.value:.1%}", "label end"))
    for value, kind in ((bar.ceiling, "ceiling"), (bar.chance, "chance")):
      if value is not None:
        mark = f"M{px(value):.1f} {y - 3}v22"
        parts.append(f'<path class="{kind}" d="{mark}"><title>{kind} {value:.1%}</title></path>')
  return _svg(490, height, "scores against ceiling and chance", parts)


def size_bars(bars: Sequence[Bar], unit: str) -> str:
  """Plain bars from zero, each with its number and unit."""
  left, right, row = 122.0, 340.0, 24
  top = max([bar.value or 0 for bar in bars] + [1e-9])
  parts = []
  for i, bar in enumerate(bars):
    y = 4 + i * row
    value = bar.value or 0.0
    width = (right - left) * value / top
    parts.append(_text(left - 8, y + 12, bar.name, "label end"))
    parts.append(f'<rect class="bar" x="{left}" y="{y}" width="{width:.1f}" height="16" rx="2"/>')
    number = "-" if bar.value is None else f"{short(value)} {unit}"
    parts.append(_text(left + width + 6, y + 12, number, "label"))
  return _svg(420, row * len(bars) + 8, unit, parts)


def linear_ticks(low: float, high: float, count: int = 4) -> list[float]:
  """About `count` round numbers that span [low, high]."""
  span = high - low or abs(high) or 1.0
  raw = span / count
  base = 10.0 ** math.floor(math.log10(raw))
  step = next(base * m for m in (1, 2, 2.5, 5, 10) if base * m >= raw * 0.999)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
  """1-2-5 numbers that span [low, high], thinned to whole powers of ten on long axes."""
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  marks = (1, 2, 5) if last - first <= 2 else (1,)
  ticks = [m * 10.0**e for e in range(first, last + 1) for m in marks]
  below = [t for t in ticks if t <= low][-1:]
  above = [t for t in ticks if t >= high and t > low][:1]
  return below + [t for t in ticks if low < t < high] + above


def short(value: float) -> str:
  """A number in at most five characters: 1234 -> 1.2k."""
  if abs(value) >= 10_000:
    return f"{value / 1000:.0f}k"
  if abs(value) >= 1000:
    return f"{value / 1000:g}k" if value % 100 == 0 else f"{value / 1000:.1f}k"
  return f"{value:.3g}"


def _kept(points: Points, log: bool) -> list[tuple[float, float]]:
  return [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]


def _thinned(points: Points, most: int = 300) -> list[tuple[float, float]]:
  """Means of neighbours, so that a long run stays a small file."""
  size = math.ceil(len(points) / most)
  if size == 1:
    return list(points)
  groups = [points[i : i + size] for i in range(0, len(points), size)]
  return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _smoothed(points: Points) -> list[tuple[float, float]]:
  """Centred running mean over a fifteenth of the curve."""
  half = max(1, len(points) // 30)
  out = []
  for i, (x, _) in enumerate(points):
    reach = min(half, i, len(points) - 1 - i)
    near = [y for _, y in points[i - reach : i + reach + 1]]
    out.append((x, sum(near) / len(near)))
  return out


def _path(points: Points, kind: str, name: str = "") -> str:
  if len(points) == 1:
    (x, y) = points[0]
    return f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
  steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
  return f'<path class="{kind}" d="M{steps}"><title>{escape(name)}</title></path>'


def _room(name: str) -> float:
  """The width of an entry of the legend."""
  return LETTER * len(name) + 20


def _legend(names: Sequence[str], right: float) -> str:
  """The entries in one line, above the curves."""
  parts = []
  for i, name in reversed(list(enumerate(names))):
    right -= _room(name)
    parts.append(_entry(right, 8, i, name))
  return "".join(parts)


def _entry(x: float, y: float, index: int, name: str) -> str:
  line = f'<path class="line s{index}" d="M{x:.1f} {y:.1f}h10"/>'
  return line + _text(x + 14, y + 4, name, "tick")


def _text(x: float, y: float, text: str, kind: str) -> str:
  return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
  body = "".join(parts)
  box = f'viewBox="0 0 {width} {height}"'
  return (
    f'<svg {box} style="max-width:{width}px" role="img" aria-label="{escape(label)}">{body}</svg>'
  )
