"""The stylesheet of report.html: light and dark, system fonts only."""

STYLE = """
:root {
  --paper: #fbfaf7; --card: #ffffff; --ink: #1d2126; --soft: #667079; --rule: #e3e1da;
  --main: #2f66a8; --faint: #2f66a855; --second: #c2631f; --third: #4d8a57; --fourth: #7d5ba6;
  --good: #2c7a4b; --bad: #b23a36;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1c2024; --ink: #e7e6e1; --soft: #98a1a9; --rule: #30363b;
    --main: #79aeea; --faint: #79aeea55; --second: #e69a5c; --third: #86c08f; --fourth: #b79ae0;
    --good: #6fc78f; --bad: #ee837c;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 48px 24px 80px; }
h1, h2 { font-family: "Iowan Old Style", Palatino, Georgia, serif; font-weight: 600; }
h1 { font-size: 38px; line-height: 1.15; margin: 0 0 12px; letter-spacing: -.01em; }
h2 { font-size: 24px; margin: 0 0 16px; }
h2 span { color: var(--soft); margin-right: 12px; font-weight: 400; }
h3 { font-size: 15px; margin: 22px 0 10px; font-weight: 600; }
h3::first-letter, th::first-letter { text-transform: uppercase; }
.wide .numbers th::first-letter { text-transform: none; }
header p { max-width: 68ch; margin: 0 0 8px; }
small { color: var(--soft); font-size: 12.5px; font-weight: 400; }
.facts, .note, .none { color: var(--soft); font-size: 13.5px; }
section { border-top: 1px solid var(--rule); padding-top: 26px; margin-top: 40px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 26px; font-size: 13.5px; }
nav a { color: var(--main); text-decoration: none; }
nav a:hover { text-decoration: underline; }
figure { margin: 0; }
figcaption { font-size: 13.5px; font-weight: 600; margin-bottom: 6px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px;
  margin-top: 26px; }
.tile, .charts figure, .two figure, .ask, .grid figure {
  background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px;
}
.tile b { font: 600 36px/1.1 "Iowan Old Style", Palatino, Georgia, serif; color: var(--main); }
.tile h3 { margin: 6px 0 2px; font-size: 14px; line-height: 1.3; }
.tile small { display: block; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr));
  gap: 14px; align-items: start; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr));
  gap: 14px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: 10px; }
.grid figure { padding: 8px; border-bottom: 3px solid var(--rule); }
.grid figcaption { font-weight: 400; font-size: 12.5px; line-height: 1.35; margin: 6px 0 0; }
.grid figcaption small { display: block; font-size: 11.5px; }
.grid .right { border-bottom-color: var(--good); }
.grid .wrong { border-bottom-color: var(--bad); }
.right .mark { color: var(--good); }
.wrong .mark { color: var(--bad); }
img { image-rendering: pixelated; width: 100%; aspect-ratio: 1; display: block; border-radius: 4px;
  background: #111; }
.asks { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(250px, 100%), 1fr));
  gap: 10px; }
.ask { display: flex; gap: 12px; padding: 8px; align-items: center; }
.ask img { width: 76px; flex: none; }
.ask p { margin: 2px 0; line-height: 1.3; }
.ask small { line-height: 1.3; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
.pictures th { text-align: left; font-size: 13.5px; font-weight: 600; padding-right: 16px;
  width: 150px; }
.pictures th small { display: block; line-height: 1.3; }
.pictures td { padding: 3px; width: 112px; min-width: 64px; }
.tables { columns: 2; column-gap: 48px; }
.numbers { font-size: 13px; font-variant-numeric: tabular-nums; width: 100%; break-inside: avoid;
  margin-bottom: 28px; }
.numbers th { text-align: left; font-weight: 400; padding: 3px 0; }
.numbers td { text-align: right; padding: 3px 0 3px 20px; }
.numbers tr { border-bottom: 1px solid var(--rule); }
.numbers tr:first-child th { font-weight: 600; }
.numbers tr:first-child td { color: var(--soft); }
@media (max-width: 760px) { .tables { columns: 1; } }
svg { display: block; width: 100%; height: auto; margin: 0 auto 0 0; }
svg text { fill: var(--soft); font-size: 11px; font-family: inherit;
  font-variant-numeric: tabular-nums; }
svg .label { fill: var(--ink); font-size: 12.5px; }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--rule); fill: none; }
svg .axis { stroke: var(--soft); fill: none; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke: var(--main); }
svg .faint { stroke: var(--faint); stroke-width: 1; }
svg .s1 { stroke: var(--second); }
svg .s2 { stroke: var(--third); }
svg .s3 { stroke: var(--fourth); }
svg .dot { fill: currentColor; }
svg .bar { fill: var(--main); opacity: .85; }
svg .ceiling { stroke: var(--ink); stroke-width: 2; }
svg .chance { stroke: var(--second); stroke-width: 2; stroke-dasharray: 3 2; }
.key { display: inline-block; width: 0; height: 14px; margin: 0 8px -2px 0;
  border-left: 2px solid; }
.key.ceiling { border-color: var(--ink); }
.key.chance { border-color: var(--second); border-left-style: dashed; margin-left: 18px; }
@media print { body { background: #fff; } section { break-inside: avoid; } nav { display: none; } }
"""
