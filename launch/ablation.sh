#!/usr/bin/env bash
# Trains and scores the rows of a table of the paper, and writes report.md, report.html and report.png:
#   bash launch/ablation.sh configs/ablations/scales.py [--mini] [--only ROW,ROW] [--out DIR]
#       [--base DIR] [--data DIR] [--lanes N] [--dry-run] [--plan TOPOLOGY]
# --mini is its twin on digits, which starts from a finished quickstart in BASE (runs/digits; made if
# it is not there) on two CPU cores. BASE of the paper's size is runs/tar, see configs/base.py.
# Call it again after an interruption, with the same words on another machine that sees DIR, or with
# other rows: runs that are done stay, and no run is made twice. --lanes runs are made at a time, each
# on its part of the cores. --dry-run prints the commands, --plan those that give the chip-hours.
set -euo pipefail

usage="usage: bash launch/ablation.sh FILE [--mini] [--only ROW,ROW] [--out DIR] [--base DIR] [--data DIR] [--lanes N] [--dry-run] [--plan TOPOLOGY]"
from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/arguments.sh
source launch/arguments.sh
# shellcheck source=launch/cpu.sh
source launch/cpu.sh

absolute() {
  [[ $1 == /* ]] && echo "$1" || echo "$from/$1"
}

page="" mini="" out="" base="" lanes="" only_shown="" words=()
while (($#)); do
  case $1 in
    --mini) mini=1 && shift ;;
    --dry-run) only_shown=1 words+=("$1") && shift ;;
    --out | --base | --data | --only | --lanes | --plan)
      [[ ${2:-} ]] || fail "$1 needs a value"
      case $1 in
        --out) out=$(absolute "$2") ;;
        --base) base=$(absolute "$2") ;;
        --data) words+=(--data "$(absolute "$2")") ;;
        --lanes) check_number "$1" "$2" && lanes=$2 ;;
        --plan) only_shown=1 words+=("$1" "$2") ;;
        *) words+=("$1" "$2") ;;
      esac
      shift 2
      ;;
    -h | --help) echo "$usage" && exit ;;
    -*) fail "unknown argument $1" ;;
    *)
      [[ -z $page ]] || fail "one table at a time, not $1 too"
      page=$1 && shift
      ;;
  esac
done
[[ $page ]] || fail "the table's file is missing"
if [[ $page == *:mini ]]; then mini=1 page=${page%:mini}; fi
[[ $page == /* || -f $page ]] || page=$(absolute "$page")
[[ -f $page ]] || fail "there is no table $page"
name=$(basename "$page" .py)
: "${base:=$PWD/runs/$([[ $mini ]] && echo digits || echo tar)}"
: "${out:=$PWD/runs/ablations/$name${mini:+-mini}}"
words=("$page" --base "$base" --out "$out" ${mini:+--mini} "${words[@]}")

if [[ -z ${PYTHON:-} ]]; then
  # shellcheck source=launch/venv.sh
  source launch/venv.sh
  make_venv requirements.txt
fi
python=${PYTHON:-.venv/bin/python}
if [[ $only_shown ]]; then exec "$python" -m tarjax.ablate "${words[@]}"; fi
if [[ $mini && ! -f $base/scores.json ]]; then bash launch/quickstart.sh --out "$base"; fi

if [[ $mini ]]; then small_steps 1; fi

# A lane is a caller of its own; they share the runs as callers on several machines do.
cores=$(nproc 2>/dev/null || echo 1)
: "${lanes:=$([[ $mini ]] && ((cores > 1)) && echo 2 || echo 1)}"
pids=()
for ((i = 0; i < lanes; i++)); do
  pin=()
  list=$((i * cores / lanes))-$(((i + 1) * cores / lanes - 1))
  if ((lanes > 1 && cores >= lanes)) && taskset -c "$list" true 2>/dev/null; then pin=(taskset -c "$list"); fi
  "${pin[@]}" "$python" -m tarjax.ablate "${words[@]}" &
  pids+=("$!")
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
code=0
for pid in "${pids[@]}"; do
  status=0
  wait "$pid" || status=$?
  while ((status > 128)) && kill -0 "$pid" 2>/dev/null; do  # a signal to this script: it was passed on
    status=0
    wait "$pid" || status=$?
  done
  if ((status > code)); then code=$status; fi
done
if ((code < 2)); then
  "$python" -m tarjax.evaluate --report "$page" --workdir "$out"
fi
exit "$code"
