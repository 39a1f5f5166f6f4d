"""Numbers of the report: their names, how they are written, and the tables of all of them."""

from html import escape
from typing import Any

TITLES: dict[str, str] = {
  "tokenizer": "Tokenizer",
  "siglip2": "SigLIP2",
  "llm": "Language model",
  "ta_tok": "TA-Tok",
  "vqvae": "VQVAE",
  "encoded": "Pre-tokenisation",
  "encoded_vq": "Pre-tokenisation for AR-DTok",
  "ar_dtok": "AR-DTok",
  "mllm": "Tar pretraining",
  "sft": "Tar SFT",
  "dc_ae": "DC-AE",
  "dif_dtok": "Dif-DTok",
  "evaluate": "Evaluation",
}
VERSIONS = {
  "original": "original",
  "vqvae": "VQVAE",
  "unitok": "UniTok",
  "scale1": "scale 1",
  "scale2": "scale 2",
  "scale3": "scale 3",
  "dc_ae": "DC-AE",
  "dif1": "scale 1, Dif-DTok",
  "dif2": "scale 2, Dif-DTok",
  "dif3": "scale 3, Dif-DTok",
}


def tables(scores: dict) -> str:
  """Small tables side by side: one per part of scores.json."""
  parts: dict[str, dict] = {}
  groups = (("t2i", "Prompt to picture"), ("t2i_dif", "By Dif-DTok"), ("i2t", "Picture to words"))
  for key, title in groups:
    bounds = {word: look_up(scores, f"{word}/{key}") or {} for word in ("ceiling", "chance")}
    parts[title] = {
      name_of(name): {"score": value} | {word: b[name] for word, b in bounds.items() if name in b}
      for name, value in scores.get(key, {}).items()
    }
  tokenizer = scores.get("ta_tok", {})
  whole = {k: v for k, v in tokenizer.items() if not isinstance(v, dict)}
  scales = {name_of(k): v for k, v in tokenizer.items() if isinstance(v, dict)}
  parts["TA-Tok"] = ({"all scales": whole} if whole else {}) | scales
  parts["Reconstruction"] = {VERSIONS[k]: v for k, v in scores.get("reconstruction", {}).items()}
  parts["Stages"] = {TITLES.get(k, k): v for k, v in scores.get("stages", {}).items()}
  scenes = look_up(scores, "ceiling/scenes") or {}
  parts["The reader itself"] = {name_of(k): {"right": v} for k, v in scenes.items()}
  text = "".join(_rows(title, rows) for title, rows in parts.items() if rows)
  return f'<div class="tables">{text}</div>'


def _rows(title: str, rows: dict[str, dict]) -> str:
  columns = list(dict.fromkeys(name for row in rows.values() for name in row))
  head = "".join(f"<td>{escape(name_of(c))}</td>" for c in columns)
  lines = [f"<tr><th>{escape(title)}</th>{head}</tr>"]
  for name, row in rows.items():
    cells = "".join(f"<td>{written(c, row.get(c))}</td>" for c in columns)
    lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
  return f'<table class="numbers">{"".join(lines)}</table>'


def look_up(tree: dict, path: str) -> Any:
  """Value at "a/b/c", or None."""
  found: Any = tree
  for part in path.split("/"):
    if not isinstance(found, dict) or part not in found:
      return None
    found = found[part]
  return found


def written(name: str, value: float | None) -> str:
  """As people write it: shares and cosines with three digits, the others as their names ask."""
  if value is None:
    return ""
  if name in ("psnr", "seconds", "peak_gb"):
    return f"{value:.1f}" + {"psnr": " dB", "seconds": " s", "peak_gb": " GB"}[name]
  return f"{value:,.0f}" if name in ("steps", "perplexity") else f"{value:.3f}"


def name_of(key: str) -> str:
  return {"yesno": "yes/no", "psnr": "PSNR", "peak_gb": "peak memory"}.get(
    key, key.replace("_", " ")
  )
