#!/usr/bin/env bash
# Plans every stage of the paper on v5e, v5p and v6e, and prints docs/plan.md's table:
#   bash launch/plans.sh [--out DIR] [WORD]
# Only rows that hold WORD, if one is given: bash launch/plans.sh v6e. Each plan takes minutes and is
# kept in DIR (default runs/plans) as plan's --json; called again it makes those that are missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage="usage: bash launch/plans.sh [--out DIR] [WORD]"
# shellcheck source=launch/arguments.sh
source launch/arguments.sh
out=runs/plans word=""
while (($#)); do
  case $1 in
    --out) (($# > 1)) || fail "--out needs a value" && out=$2 && shift 2 ;;
    -h | --help) echo "$usage" && exit ;;
    -*) fail "unknown argument $1" ;;
    *) word=$1 && shift ;;
  esac
done
python=${PYTHON:-.venv/bin/python}

rows() {
  local chip
  echo "mllm.py:1p5b_pretrain v5p:4x4x4"
  echo "mllm.py:1p5b_pretrain v5p:4x4x4 --slices=2"
  for chip in v5e:16x16 v6e:16x16; do echo "mllm.py:1p5b_pretrain $chip"; done
  for chip in v5p:4x4x4 v5e:16x16 v6e:16x16; do echo "mllm.py:7b_pretrain $chip"; done
  for chip in v5p:4x4x4 v5e:8x8 v6e:8x8; do echo "mllm.py:1p5b_sft $chip"; done
  for chip in v5p:4x4x4 v5e:8x8 v6e:8x8; do echo "mllm.py:7b_sft $chip"; done
  for chip in v5p:2x4x4 v5e:8x8 v6e:8x8; do echo "mllm.py:demo $chip"; done
  for chip in v5p:4x4x4 v5e:8x8 v6e:8x8; do echo "ta_tok.py $chip"; done
  for chip in v5p:4x4x4 v5e:8x8 v6e:8x8; do echo "ar_dtok.py:256_xl $chip"; done
  for chip in v5p:2x4x4 v5e:4x8 v6e:4x8; do echo "ar_dtok.py:512_xl $chip"; done
  for chip in v5p:2x2x4 v5e:4x4 v6e:4x4; do echo "ar_dtok.py:1024_xl $chip"; done
  for chip in v5p:2x2x4 v5e:4x4 v6e:4x4; do echo "dif_dtok.py:512 $chip"; done
  for chip in v5p:4x4x4 v5e:8x8 v6e:8x8; do echo "vqvae.py $chip"; done
  for chip in v5p:4x4x4 v5e:8x8 v6e:8x8; do echo "llamagen.py:xl $chip"; done
}

mkdir -p "$out"
files=()
while read -r stage topology options; do
  [[ "$stage $topology $options" == *"$word"* ]] || continue
  file=$out/$(tr -c 'A-Za-z0-9\n' _ <<<"$stage $topology $options").json
  files+=("$stage" "$options" "$file")
  [[ -s $file ]] && continue
  echo "planning $stage on $topology $options" >&2
  code=0
  # shellcheck disable=SC2086  # options are words
  "$python" -m tarjax.plan --config="configs/$stage" --topology="$topology" $options --json \
    >"$file.part" </dev/null || code=$?
  # 1 with a result: it does not fit, which is a row too
  [[ $code == 0 || ($code == 1 && -s "$file.part") ]] || exit "$code"
  mv "$file.part" "$file"
done < <(rows)
((${#files[@]})) || fail "no row holds '$word'"

"$python" - "${files[@]}" <<'PY'
import json, sys

print("| stage | topology, mesh (data, fsdp, model) | GiB per chip | step s | at most | MFU "
      "| per second | chip-hours |\n" + "| --- " * 8 + "|")
for stage, options, file in zip(*[iter(sys.argv[1:])] * 3):
  with open(file) as f:
    r = json.load(f)
  slices = options.partition("--slices=")[2]
  place = r["topology"] + (f", {slices} slices" if slices else "")
  place += f" {tuple(r['mesh'].values())}"
  start = f"| `{stage}` | {place} | {r['bytes_per_chip']['total'] / 2**30:.1f} |"
  if not r["fits"]:
    print(start, "does not fit | | | | |")
    continue
  unit = "tokens" if "tokens_per_second" in r else "images"
  print(start, f"{r['step_seconds']:.3f} | {r['at_most_seconds']:.3f} | {r['mfu']:.1%} |",
        f"{r[f'{unit}_per_second']:,.0f} {unit} | {r['chip_hours']:,.0f} |")
PY
