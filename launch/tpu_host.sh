#!/usr/bin/env bash
# What launch/tpu_vm.sh asks of every host of a slice, in a copy of the repository there:
#   bash launch/tpu_host.sh setup SOURCE          environment, and SOURCE mounted on /mnt/tar
#   bash launch/tpu_host.sh start ARGUMENT...     worker.sh in the background, unless it runs; then
#                                                 shows its log and ends with its code
#   bash launch/tpu_host.sh stop                  TERM: saves and ends; `start` ends with 130
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mount=${TARJAX_MOUNT:-/mnt/tar} log=$PWD/run.log

# The worker and its children hold run.lock.
running() {
  ! flock -n run.lock true
}

install_gcsfuse() {
  local list=/etc/apt/sources.list.d/gcsfuse.list key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee "$list" >/dev/null
  sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse
}

setup() {
  local source=$1
  # shellcheck source=launch/venv.sh
  source launch/venv.sh
  make_venv requirements-tpu.txt
  mountpoint -q "$mount" && return
  sudo mkdir -p "$mount"
  if [[ $source == gs://* ]]; then
    command -v gcsfuse >/dev/null || install_gcsfuse
    sudo chown "$(id -u)" "$mount"
    # A save is finished by renaming its directory.
    gcsfuse --implicit-dirs --rename-dir-limit 1000000 "${source#gs://}" "$mount"
  else
    command -v mount.nfs >/dev/null || { sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common; }
    sudo mount -t nfs "$source" "$mount"
  fi
}

start() {
  if ! running; then
    rm -f run.code run.stopped
    : >"$log"
    # shellcheck disable=SC2016
    setsid bash -c 'exec 9>run.lock; flock 9; trap : TERM; code=0
      bash launch/worker.sh "$@" || code=$?
      echo "$code" >run.code' worker "$@" </dev/null >>"$log" 2>&1 &
    echo "$!" >run.pid
  fi
  tail -n +1 --pid="$(cat run.pid)" -F "$log" 2>/dev/null
  [[ ! -e run.stopped ]] || exit 130
  exit "$(cat run.code 2>/dev/null || echo 1)"
}

stop() {
  touch run.stopped
  ! running || kill -TERM -- "-$(cat run.pid)"
  while running; do sleep 1; done
}

"$@"
