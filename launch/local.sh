#!/usr/bin/env bash
# Trains on several processes of this machine, which find each other through jax.distributed as
# those of a pod do:
#   bash launch/local.sh -n 4 [-d DEVICES] -- --config=configs/digits/llm.py --workdir=runs/llm
# Without an accelerator each process has DEVICES CPU devices (default 1). A program of your own may
# stand first after "--": -m module, or a file. The first process speaks; errors of all are shown.
# TERM or INT to this script or to any of the processes saves, and stops all of them (exit code 143).
# When one fails, the others get GRACE seconds (default 15) to end by themselves.
set -euo pipefail

usage="usage: bash launch/local.sh -n PROCESSES [-d DEVICES] -- --config=FILE --workdir=DIR ..."
fail() {
  echo "error: $1; $usage" >&2
  exit 2
}
count="" devices=1
while (($#)); do
  case $1 in
    -n | -d)
      [[ ${2:-} =~ ^[1-9][0-9]{0,3}$ ]] || fail "$1 needs a whole number above 0"
      if [[ $1 == -n ]]; then count=$2; else devices=$2; fi
      shift 2
      ;;
    -h | --help) echo "$usage" && exit ;;
    --) shift && break ;;
    *) fail "unknown argument $1" ;;
  esac
done
[[ $count ]] || fail "-n is missing"
(($#)) || fail "nothing stands after --"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || fail "there is no $python: bash launch/quickstart.sh makes it, or PYTHON names another"
[[ $1 != --* ]] || set -- -m tarjax.train "$@"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
JAX_COORDINATOR_ADDRESS=127.0.0.1:$("$python" -c "$free_port")
export JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES=$count
if [[ -z ${JAX_PLATFORMS:-} ]] && ! command -v nvidia-smi >/dev/null && [[ ! -e /dev/accel0 ]]; then
  export JAX_PLATFORMS=cpu
fi
if [[ ${JAX_PLATFORMS:-} == cpu ]]; then
  export JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo JAX_NUM_CPU_DEVICES=$devices
fi

pids=()
for ((i = 0; i < count; i++)); do
  if ((i)); then
    JAX_PROCESS_ID=$i "$python" "$@" >/dev/null &
  else
    JAX_PROCESS_ID=$i "$python" "$@" &
  fi
  pids+=("$!")
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

# The first failure is the code of all, unless they stop because they were asked to.
code=0 left=$count deadline=""
while ((left)); do
  status=0
  wait -n -p ended "${pids[@]}" || status=$?
  # Nobody: a signal to this script, which was passed on, or some were killed together with another,
  # which `wait -n` forgets.
  if [[ -z ${ended:-} ]]; then
    for pid in "${pids[@]}"; do
      if ! kill -0 "$pid" 2>/dev/null; then
        ended=$pid status=0
        wait "$pid" || status=$?
        break
      fi
    done
    [[ ${ended:-} ]] || continue
  fi
  ((left--)) || true
  for i in "${!pids[@]}"; do [[ ${pids[i]} != "$ended" ]] || unset "pids[i]"; done
  if ((status)) && { ((code == 0)) || ((code == 143)); }; then code=$status; fi
  if ((status == 143 && left)); then  # one that was stopped before it had met the others
    kill -TERM "${pids[@]}" 2>/dev/null || true
  fi
  if ((status && status != 143 && left)) && [[ -z $deadline ]]; then
    deadline=1
    kill -CONT "${pids[@]}" 2>/dev/null || true
    { sleep "${GRACE:-15}" && kill -KILL "${pids[@]}" 2>/dev/null || true; } &
  fi
done
exit "$code"
