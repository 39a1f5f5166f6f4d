"""The report: whole, well formed, without network, and honest about what is missing."""

import base64
import dataclasses
import html.parser
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from tarjax.evals import report, report_charts
from tarjax.evals.digits import Answer, Drawing, Rebuilt

HEADINGS = [
  "Scores",
  "Pictures from prompts",
  "Reconstruction",
  "Captions and answers",
  "Training",
  "Codebooks",
  "Time and memory",
  "All numbers",
]
VOID = {"img", "meta", "br"}


class Checker(html.parser.HTMLParser):
  """Collects tags and texts, and fails on a tag that is not closed in order."""

  def __init__(self):
    super().__init__()
    self.open, self.seen, self.texts, self.sources = [], [], [], []

  def handle_starttag(self, tag, attrs):
    self.seen.append(tag)
    self.sources += [v for k, v in attrs if k in ("src", "href", "data", "srcset")]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.seen.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, f"</{tag}> closes another tag at {self.getpos()}"

  def handle_data(self, data):
    self.texts.append(data)


def check(page: str) -> Checker:
  checker = Checker()
  checker.feed(page)
  checker.close()
  assert not checker.open
  assert "script" not in checker.seen and "link" not in checker.seen
  assert all(s.startswith(("data:image/png;base64,", "#")) for s in checker.sources)
  for loader in ("http://", "https://", "@import", "url("):
    assert loader not in page
  return checker


def parts() -> dict:
  rng = np.random.default_rng(0)

  def image():
    return rng.integers(0, 256, (48, 48, 3), np.uint8)

  lines = [{"step": i * 10, "loss": 3 / i, "codes_usage": 0.5} for i in range(1, 40)]
  lines[-1] |= {"val/loss": 0.5, "codes_perplexity": 300.0, "mse": None}
  return {
    "scores": {
      "settings": {"seed": 12345, "temperature": 0.5},
      "ceiling": {"t2i": {"colours": 0.97, "overall": 0.95}, "scenes": {"single": 0.985}},
      "chance": {"t2i": {"colours": 0.02, "overall": 0.01}, "i2t": {"yesno": 0.501}},
      "t2i": {"colours": 0.813, "overall": 0.702},
      "i2t": {"yesno": 0.876, "caption": 0.5},
      "ta_tok": {"usage": 0.61, "perplexity": 412.0, "rec_cosine": 0.877, "scale1": {"usage": 0.6}},
      "reconstruction": {"original": {"digit": 0.99}, "vqvae": {"psnr": 26.04, "digit": 0.9}},
      "stages": {"mllm": {"seconds": 120.5, "steps": 700, "peak_gb": 1.25}},
    },
    "runs": {"ta_tok": lines, "mllm": [{"step": 5, "loss": 1.0}], "sft": []},
    "drawings": [
      Drawing("colours", f"a <b>red</b> {i}", image(), "red & one", i % 2 == 0) for i in range(9)
    ],
    "answers": [
      Answer("yesno", "Is there a three?", image(), "yes", "no", False),
      Answer("caption", "Describe it.", image(), "a red one", "a red one", True),
    ],
    "rebuilt": [Rebuilt(image(), {"vqvae": image(), "scale1": image()})],
  }


def test_page_holds_every_section_and_number():
  page = report.build(**parts())
  checker = check(page)
  text = " ".join(checker.texts)
  for heading in HEADINGS:
    assert heading in checker.texts
  for number in ("0.813", "0.876", "0.970", "0.501", "26.0 dB", "120.5 s", "1.2 GB", "412"):
    assert number in text, number
  assert "70%" in text and "ceiling 95%" in text  # the headline
  assert "a <b>red</b> 0" in text and "<b>red</b> 0" not in page.replace("&lt;", "")  # escaped
  assert "expected: yes" in text and "expected: a red one" not in text
  assert checker.seen.count("img") == report.PER_CATEGORY + 2 + 3
  assert checker.seen.count("svg") == 2 + 2 + 2 + 2  # scores, losses, codebook, stages
  assert "prefers-color-scheme: dark" in page and "pixelated" in page


def test_dif_dtok_stands_beside_ar_dtok():
  given = parts()
  other = Drawing("colours", "a one", given["drawings"][0].image, "blue & nine", True)
  given["drawings"] = [dataclasses.replace(d, dif=other) for d in given["drawings"]]
  given["scores"]["t2i_dif"] = {"colours": 0.432}
  given["rebuilt"][0].versions["dif1"] = other.image
  page = report.build(**given)
  checker = check(page)
  text = " ".join(checker.texts)
  assert "scale 1, Dif-DTok" in text and "DC-AE" not in text
  assert "Dif-DTok" not in report.build(**parts())  # nothing of what is not there
  assert "43% by Dif-DTok" in text and "blue & nine" in text and "0.432" in text
  assert checker.seen.count("img") == 2 * report.PER_CATEGORY + 2 + 4


def test_pictures_are_lossless():
  image = np.arange(48 * 48 * 3, dtype=np.uint32).astype(np.uint8).reshape(48, 48, 3)
  page = report.build({}, {}, rebuilt=[Rebuilt(image, {})])
  data = page.split("data:image/png;base64,")[1].split('"')[0]
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), image)


@pytest.mark.parametrize("missing", ["scores", "runs", "drawings", "answers", "rebuilt"])
def test_a_missing_part_is_said_so(missing):
  given = parts()
  given[missing] = type(given[missing])()
  page = report.build(**given)
  check(page)
  assert 'class="none"' in page
  assert all(f"</span>{heading}</h2>" in page for heading in HEADINGS)


def test_nothing_at_all_still_gives_a_page():
  checker = check(report.build({}, {}))
  assert "img" not in checker.seen


def test_read_run_skips_a_torn_line(tmp_path):
  assert report.read_run(tmp_path) == []
  (tmp_path / "metrics.jsonl").write_text(
    json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo'
  )
  assert report.read_run(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("low, high", [(0, 1), (0.31, 0.34), (-2, 7000), (5, 5), (0, 1e-6)])
def test_linear_ticks_span_the_values(low, high):
  ticks = report_charts.linear_ticks(low, high)
  assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 8
  assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


@pytest.mark.parametrize("low, high", [(0.3, 5), (1, 1), (1e-5, 20), (2, 2.1)])
def test_log_ticks_span_the_values(low, high):
  ticks = report_charts.log_ticks(low, high)
  assert ticks[0] <= low * 1.001 and ticks[-1] >= high * 0.999 and ticks == sorted(set(ticks))


def test_line_chart_leaves_out_what_it_cannot_draw():
  points = [(1, math.nan), (2, 0.0), (3, 1.0), (4, math.inf), (5, 10.0)]
  svg = report_charts.line_chart({"training": points}, log=True)
  check(svg)
  assert "nan" not in svg and "inf" not in svg
  assert "no points" in report_charts.line_chart({"training": points[:1]})


def test_names_without_room_above_the_curves_stand_below_them():
  points = [(1, 2.0), (5, 9.0)]
  height = {}
  for names in (["a", "b"], ["a long name of a row", "b", "another long name of a row", "d"]):
    svg = report_charts.line_chart(dict.fromkeys(names, points), y_label="loss", log=None)
    check(svg)
    (height[len(names)],) = map(int, re.findall(r'viewBox="0 0 360 (\d+)"', svg))
    places = [float(y) for y in re.findall(r'class="tick" x="[^"]+" y="([^"]+)">[ab]', svg)]
    assert (min(places) > 206) == (len(names) > 2) and max(places) < height[len(names)]
    assert "loss<" in svg
  assert height == {2: 210, 4: 274}
  assert "loss (log)" in report_charts.line_chart(
    {"a": [(1, 2.0), (5, 11.0)]}, y_label="loss", log=None
  )


def test_bar_lengths_are_the_values():
  svg = report_charts.score_bars(
    [report_charts.Bar("a", 0.5, 1.0, 0.1), report_charts.Bar("b", 1.0)]
  )
  check(svg)
  widths = [
    float(part.split('"')[0])
    for part in svg.split('class="bar"')[1:]
    for part in [part.split('width="')[1]]
  ]
  assert widths[0] * 2 == pytest.approx(widths[1])
  assert svg.count('class="ceiling"') == svg.count('class="chance"') == 1
