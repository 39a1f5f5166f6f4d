#!/usr/bin/env bash
# Trains all of Tar, small, on real handwriting, and writes report.html:
#   bash launch/quickstart.sh [--out DIR] [--smoke] [--seed N] [--dif]
# --dif adds the other de-tokenizer, Dif-DTok over a DC-AE: generate --detokenizer dif.
# Run it again after an interruption: finished stages are skipped, the others go on from their last
# save.
set -euo pipefail

usage="usage: bash launch/quickstart.sh [--out DIR] [--smoke] [--seed N] [--dif]"
out="" variant="" seed=0 count=384 dif=""
while (($#)); do
  case $1 in
    --out | --seed)
      (($# > 1)) || { echo "error: $1 needs a value; $usage" >&2 && exit 2; }
      if [[ $1 == --out ]]; then out=$2; else seed=$2; fi
      shift 2
      ;;
    --dif) dif=" --dif" && shift ;;
    --smoke) variant=":smoke" count=24 && shift ;;
    -h | --help) echo "$usage" && exit ;;
    *) echo "error: unknown argument $1; $usage" >&2 && exit 2 ;;
  esac
done
if [[ ! $seed =~ ^[0-9]{1,9}$ ]]; then
  echo "error: --seed must be a whole number, got $seed" >&2
  exit 2
fi
seed=$((10#$seed))

[[ -z $out || $out == /* ]] || out=$PWD/$out
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z $out ]]; then
  out=$PWD/runs/digits${variant:+-smoke}
  ((seed == 0)) || out+=-seed$seed
  [[ -z $dif ]] || out+=-dif
fi

# A directory belongs to one kind of run, and to one process at a time.
mkdir -p "$out"
kind="quickstart${variant} --seed $seed$dif"
[[ -f $out/kind.txt ]] || echo "$kind" >"$out/kind.txt"
if [[ $(<"$out/kind.txt") != "$kind" ]]; then
  echo "error: $out holds a run of \"$(<"$out/kind.txt")\"; choose another --out" >&2
  exit 2
fi
if command -v flock >/dev/null; then
  exec 9>"$out/.lock"
  if ! flock -n 9; then
    echo "waiting: another process still works in $out"
    flock 9
  fi
fi

report() {
  echo "done: $out/report.html (scores in $out/scores.json)"
}
if [[ -f $out/scores.json && -f $out/report.html ]]; then
  report
  exit
fi

# shellcheck source=launch/venv.sh
source launch/venv.sh
# shellcheck source=launch/cpu.sh
source launch/cpu.sh
make_venv requirements.txt
python=.venv/bin/python

verb() {
  "$python" -m "tarjax.$1" "${@:2}"
}
train() {
  [[ -f $out/$1/done.json ]] && return
  "${pin[@]}" "$python" -m tarjax.train --config="configs/digits/$1.py$variant" --workdir="$out/$1" --config.seed="$seed"
}

small_steps "$([[ $variant ]] && echo 0 || echo 1)"

# Two lanes, each on its half of the cores: a step of this size keeps one core busy, and threads of
# two steps wait for each other. Lines, not bars: the lanes share them.
pin=()
cores=$(nproc 2>/dev/null || echo 1)
half() {
  local list
  list=$([[ $1 == first ]] && echo "0-$((cores / 2 - 1))" || echo "$((cores / 2))-$((cores - 1))")
  if ((cores > 1)) && taskset -c "$list" true 2>/dev/null; then pin=(taskset -c "$list"); fi
}
lane() {
  local stage
  for stage in "$@"; do train "$stage" | cat; done
}
encode() {
  [[ -f $out/$2/done.json ]] ||
    "${pin[@]}" "$python" -m tarjax.encode --config="configs/digits/$1.py$variant" \
      --workdir="$out/$2" --config.seed="$seed"
}
# Until the other lane, which process $2 runs, is done with stage $1.
await() {
  while [[ ! -f $out/$1/done.json ]]; do
    kill -0 "$2" 2>/dev/null || { echo "error: $1 did not finish" >&2 && exit 1; }
    sleep 1
  done
}
pixels() {
  half second
  lane llm vqvae
  await ta_tok $$
  encode encode_vq encoded_vq
  lane ar_dtok
}

echo "training Tar in $out"
verb data.tokenizer "$out/tokenizer" "$out/tokenizer_tar" 1024
pixels &
other=$!
trap 'kill "$other" 2>/dev/null || true' EXIT
half first
lane siglip2
await llm "$other"
lane ta_tok
encode encode encoded
lane mllm sft
wait "$other"
trap - EXIT
pin=()
[[ -z $dif ]] || lane dc_ae dif_dtok
cp configs/digits/bundle.json "$out/bundle.json"
verb evaluate --model "$out" --tasks digits --out "$out/scores.json" --report "$out/report.html" \
  --count "$count"
printf 'finished in %d min %d s (this call)\n' $((SECONDS / 60)) $((SECONDS % 60))
report
