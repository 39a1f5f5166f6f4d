#!/usr/bin/env bash
# One process of a run, started again until the run is done; the pod launchers call it on each host:
#   bash launch/worker.sh [--restarts N] -- --config=FILE --workdir=DIR ...
# The process finds the others by itself (TARJAX_DISTRIBUTED=1, see tarjax/distributed.py), and goes
# on from the last save. Ends with 0 when the run is done, with 2 for a mistake in the config, with
# 143 after TERM (the run saved), and with the run's code after N failures in a row (default 10). One
# that comes more than an hour after its start is the first of a row. PAUSE seconds (default 10) lie
# between two starts.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage="usage: bash launch/worker.sh [--restarts N] -- --config=FILE --workdir=DIR ..."
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"
restarts=10
while (($#)); do
  case $1 in
    --restarts) check_number "$1" "${2:-}" && restarts=$2 && shift 2 ;;
    -h | --help) echo "$usage" && exit ;;
    --) shift && break ;;
    *) fail "unknown argument $1" ;;
  esac
done
check_run "" "$@"
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || fail "there is no $python"
export TARJAX_DISTRIBUTED=1 PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

child="" stopping="" interrupted=""
trap 'stopping=1 interrupted=1; if [[ $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi' TERM INT

# Runs a command to its end, also when a signal comes; `code` is its exit code.
attend() {
  "$@" &
  child=$!
  [[ -z $stopping ]] || kill -TERM "$child" 2>/dev/null || true
  interrupted=1
  while [[ $interrupted ]]; do
    interrupted="" code=0
    wait "$child" || code=$?
  done
  child=""
}

failures=0
while :; do
  began=$SECONDS
  attend "$python" -m tarjax.train "$@"
  if ((code == 0 || code == 2)) || [[ $stopping ]]; then exit "$code"; fi
  ((SECONDS - began < 3600)) || failures=0
  failures=$((failures + 1))
  echo "$(hostname): the run ended with code $code, failure $failures of $restarts" >&2
  ((failures < restarts)) || exit "$code"
  attend sleep "${PAUSE:-10}"
  [[ -z $stopping ]] || exit 143
done
