#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet (launch/gke_jobset.yaml):
#   bash launch/gke.sh --name NAME --topology CHIP:SHAPE --image IMAGE --mount SOURCE [--slices N]
#       [--spot] [--namespace N] [--service-account A] [--restarts N] [--dry-run]
#       -- --config=configs/mllm.py:7b_pretrain --workdir=/mnt/tar/runs/mllm ...
# IMAGE is made by launch/Dockerfile. SOURCE, gs://BUCKET (with hierarchical namespace; the cluster
# has the Cloud Storage FUSE driver) or an NFS share HOST:/SHARE, is /mnt/tar in every pod. All pods
# are made again when one fails or is taken away, up to N times (default 100); a mistake in the config
# (exit code 2) fails at once. Call it again to go on after that, or to see that it still runs.
# --dry-run prints what would be applied.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage="usage: bash launch/gke.sh --name NAME --topology CHIP:SHAPE --image IMAGE --mount SOURCE [options] -- --config=FILE --workdir=/mnt/tar/DIR ..."
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"

name="" topology="" image="" source="" slices=1 spot="" namespace=default account=default restarts=100 dry=""
while (($#)); do
  case $1 in
    --name | --topology | --image | --mount | --slices | --namespace | --service-account | --restarts)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
        --name) name=$2 ;;
        --topology) topology=$2 ;;
        --image) image=$2 ;;
        --mount) source=$2 ;;
        --slices) slices=$2 ;;
        --namespace) namespace=$2 ;;
        --service-account) account=$2 ;;
        --restarts) restarts=$2 ;;
      esac
      shift 2
      ;;
    --spot) spot=1 && shift ;;
    --dry-run) dry=1 && shift ;;
    -h | --help) echo "$usage" && exit ;;
    --) shift && break ;;
    *) fail "unknown argument $1" ;;
  esac
done
label='[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?'
check --name "$name" "$label" "lower-case letters, digits and hyphens, at most 40"
check --namespace "$namespace" "$label" "a namespace"
check --service-account "$account" "$label" "a service account of the namespace"
check --image "$image" '[A-Za-z0-9][A-Za-z0-9._/:@-]+' "a container image"
check_number --slices "$slices"
check_number --restarts "$restarts"
split_topology "$topology"
check_mount "$source"
check_run /mnt/tar "$@"
# A slice of one host has all its chips there, the hosts of others have four.
hosts=$((chips > 8 ? chips / 4 : 1))
[[ $chip != v5p ]] || hosts=$((chips > 4 ? chips / 4 : 1))

reference="\$("
# quoted TEXT -> a string of YAML. $(NAME) would be replaced in a container's arguments; $$( is not.
quoted() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//"$reference"/"\$$reference"}
  printf '"%s"' "$text"
}

arguments=""
for argument in "$@"; do arguments+=${arguments:+, }$(quoted "$argument"); done
if [[ $source == gs://* ]]; then
  volume="csi: {driver: gcsfuse.csi.storage.gke.io, volumeAttributes: {bucketName: $(quoted "${source#gs://}"), mountOptions: \"implicit-dirs,rename-dir-limit=1000000\"}}"
else
  volume="nfs: {server: $(quoted "${source%%:*}"), path: $(quoted "${source#*:}")}"
fi
jobset=$(<"$root/launch/gke_jobset.yaml")
fill() { jobset=${jobset//"\${$1}"/"$2"}; }
fill NAME "$name"
fill NAMESPACE "$namespace"
fill ACCOUNT "$account"
fill RESTARTS "$restarts"
fill SLICES "$slices"
fill HOSTS "$hosts"
fill CHIPS "$((chips / hosts))"
fill ACCELERATOR "$gke_accelerator"
fill SHAPE "$shape"
fill SPOT "${spot:+cloud.google.com/gke-spot: \"true\"}"
fill IMAGE "$image"
fill VOLUME "$volume"
fill ARGUMENTS "$arguments"  # last: what they hold is not filled in

if [[ $dry ]]; then
  echo "$jobset"
  exit
fi
ended=$(kubectl get jobset "$name" --namespace="$namespace" --ignore-not-found \
  --output=jsonpath='{.status.terminalState}')
if [[ $ended ]]; then
  kubectl delete jobset "$name" --namespace="$namespace" --wait
fi
kubectl apply --filename=- <<<"$jobset"
