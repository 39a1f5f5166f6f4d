# shellcheck shell=bash
# Sourced by the pod launchers: one sentence and exit code 2 for a mistake in their arguments. The
# launcher sets `usage` first.

fail() {
  echo "error: $1; ${usage:-}" >&2
  exit 2
}

# check NAME VALUE PATTERN WHAT: the value must match as a whole.
check() {
  [[ $2 =~ ^($3)$ ]] || fail "$1 must be $4, got '$2'"
}

check_number() {
  check "$1" "$2" '[1-9][0-9]{0,5}' "a whole number above 0"
}

# check_run MOUNT ARGUMENT...: what stands after "--" must start a run that outlives its machines.
# MOUNT is where their shared directory is; "" is anywhere.
check_run() {
  local argument config="" workdir=""
  for argument in "${@:2}"; do
    [[ $argument != *$'\n'* ]] || fail "an argument holds a line break"
    [[ $argument != *=gs://* ]] ||
      fail "$argument: runs are kept in directories; --mount gs://BUCKET makes the bucket one"
    case $argument in
      --config=*) config=${argument#*=} ;;
      --workdir=*) workdir=${argument#*=} ;;
    esac
  done
  [[ $config ]] || fail "--config=FILE is missing after --"
  [[ $workdir ]] || fail "--workdir=DIR is missing after --"
  [[ -z $1 || $workdir == "$1"/[!/]* ]] || fail "--workdir must be a directory under $1, got '$workdir'"
}

# split_topology CHIP:SHAPE, as plan names it: sets chip, shape, chips, and what clouds call the kind
# (accelerator, as in gcloud and xpk; gke_accelerator; runtime).
# shellcheck disable=SC2034  # read by the launchers
split_topology() {
  check --topology "$1" '(v5e|v6e):[0-9]+x[0-9]+|v5p:[0-9]+x[0-9]+x[0-9]+' \
    "CHIP:SHAPE such as v5p:4x4x4, v5e:16x16 or v6e:16x16"
  chip=${1%%:*} shape=${1#*:}
  chips=$((${shape//x/*}))
  ((chips)) || fail "--topology $1 has no chips"
  case $chip in
    v5e) accelerator=v5litepod-$chips gke_accelerator=tpu-v5-lite-podslice runtime=v2-alpha-tpuv5-lite ;;
    v5p) accelerator=v5p-$((2 * chips)) gke_accelerator=tpu-v5p-slice runtime=v2-alpha-tpuv5 ;;
    v6e) accelerator=v6e-$chips gke_accelerator=tpu-v6e-slice runtime=v2-alpha-tpuv6e ;;
  esac
}

# check_mount SOURCE: a bucket or an NFS share.
check_mount() {
  check --mount "$1" 'gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]|[A-Za-z0-9.-]+:/[^ ]*' \
    "gs://BUCKET or HOST:/SHARE"
}
