#!/usr/bin/env bash
# Trains on Cloud TPU VMs, one slice or several, until the run is done:
#   bash launch/tpu_vm.sh --name NAME --zone ZONE --topology CHIP:SHAPE --mount SOURCE
#       [--project P] [--slices N] [--spot] [--runtime VERSION] [--restarts N] [--keep] [--dry-run]
#       -- --config=configs/mllm.py:7b_pretrain --workdir=/mnt/tar/runs/mllm ...
#   bash launch/tpu_vm.sh --name NAME --zone ZONE [--project P] --stop | --delete
# Waits in the queue for the slice, sets every host up, starts the run on all, and shows it. A slice
# that is taken away is asked for again. This script may be stopped at any time (the run goes on) and
# be called again (it finds the slice, and the run). --stop saves and ends the run; a slice is deleted
# when its run is done, unless --keep, and by --delete. SOURCE, gs://BUCKET (with hierarchical
# namespace) or an NFS share HOST:/SHARE, is /mnt/tar on every host. --dry-run prints the commands.
# Exit codes: 0 done, 2 a mistake in arguments or config, 130 stopped, else the code of the run's
# N-th failure in a row (default 10), see launch/worker.sh. POLL is the time between two looks at the
# queue (default 30 s).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage="usage: bash launch/tpu_vm.sh --name NAME --zone ZONE --topology CHIP:SHAPE --mount SOURCE [options] -- --config=FILE --workdir=/mnt/tar/DIR ..."
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"

name="" zone="" project="" topology="" slices=1 source="" spot="" version="" restarts=10 keep="" dry=""
action=run
while (($#)); do
  case $1 in
    --name | --zone | --project | --topology | --slices | --mount | --runtime | --restarts)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
        --name) name=$2 ;;
        --zone) zone=$2 ;;
        --project) project=$2 ;;
        --topology) topology=$2 ;;
        --slices) slices=$2 ;;
        --mount) source=$2 ;;
        --runtime) version=$2 ;;
        --restarts) restarts=$2 ;;
      esac
      shift 2
      ;;
    --spot) spot=1 && shift ;;
    --keep) keep=1 && shift ;;
    --dry-run) dry=1 && shift ;;
    --stop | --delete) action=${1#--} && shift ;;
    -h | --help) echo "$usage" && exit ;;
    --) shift && break ;;
    *) fail "unknown argument $1" ;;
  esac
done
check --name "$name" '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' "lower-case letters, digits and hyphens, at most 40"
check --zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone such as us-east5-a"
place=(--zone="$zone" --quiet)
if [[ $project ]]; then
  check --project "$project" '[a-z][-a-z0-9:.]{4,60}' "a project's id"
  place+=(--project="$project")
fi
if [[ $action == run ]]; then
  split_topology "$topology"
  check_number --slices "$slices"
  check_number --restarts "$restarts"
  check_mount "$source"
  check_run /mnt/tar "$@"
fi

tpus() {
  if [[ $dry ]]; then
    printf 'gcloud compute tpus queued-resources' >&2
    printf ' %q' "$@" >&2
    echo >&2
  else
    gcloud compute tpus queued-resources "$@"
  fi
}

# `state` is the queue's word for the resource, "none" if it is not there. A dry run sees it come.
look() {
  local found
  found=$(tpus list "${place[@]}" "--filter=name~/$name\$" "--format=value(state.state)") || return 1
  if [[ $dry ]]; then
    if [[ $state ]]; then state=ACTIVE; else state=none; fi
  else
    state=${found:-none}
  fi
}

create() {
  local nodes=(--node-id="$name")
  ((slices == 1)) || nodes=(--node-count="$slices" --node-prefix="$name")
  tpus create "$name" "${place[@]}" "${nodes[@]}" --accelerator-type="$accelerator" \
    --runtime-version="${version:-$runtime}" ${spot:+--spot} --async
}

delete() {
  tpus delete "$name" "${place[@]}" --force
}

# on_all COMMAND: on every host of every slice; a connection that is dead for two minutes ends.
everywhere=(--node=all --worker=all --batch-size=all)
on_all() {
  tpus ssh "$name" "${place[@]}" "${everywhere[@]}" --ssh-flag="-o ServerAliveInterval=30" \
    --ssh-flag="-o ServerAliveCountMax=4" --command="$1"
}

# host WORD...: launch/tpu_host.sh there, with the words quoted for its shell.
host() {
  on_all "cd tarjax && bash launch/tpu_host.sh$(printf ' %q' "$@")"
}

# Sends the code as it is here, which replaces none that runs, and makes the hosts ready.
unpack="mkdir -p tarjax && cd tarjax && { ! flock -n run.lock true || tar -xzf ../tarjax.tgz; }"
set_up() {
  local packed code=0
  packed=$(mktemp -d)
  tar -C "$root" --exclude=__pycache__ -czf "$packed/tarjax.tgz" tarjax configs launch \
    requirements.txt requirements-tpu.txt
  tpus scp "$packed/tarjax.tgz" "$name:tarjax.tgz" "${place[@]}" "${everywhere[@]}" || code=1
  rm -rf "$packed"
  ((code == 0)) && on_all "$unpack" && host setup "$source"
}

case $action in
  stop) host stop && exit ;;
  delete) delete && exit ;;
esac

state="" said=""
while :; do
  if ! look; then
    [[ $said ]] || fail "gcloud cannot list the queued resources of $zone"
    state=unknown
  fi
  [[ $state == "$said" ]] || echo "$(date +%T) $name: $state" >&2
  said=$state code=0
  case $state in
    none) create && continue || exit ;;
    FAILED | SUSPENDED) delete && continue ;;
    ACTIVE)
      if ! set_up; then
        code=255
      else
        host start --restarts "$restarts" -- "$@" || code=$?
      fi
      case $code in
        0) [[ $keep ]] || delete && exit ;;
        143 | 255) echo "lost the run (code $code): looking again" >&2 ;;
        *) echo "the run ended with code $code; $name is kept, --delete deletes it" >&2 && exit "$code" ;;
      esac
      ;;
  esac
  sleep "${POLL:-30}"
done
