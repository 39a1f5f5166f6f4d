#!/usr/bin/env bash
# Trains on GPU nodes under Slurm, one process per GPU, until the run is done:
#   bash launch/slurm.sh --nodes N --gpus GPUS_PER_NODE [--time T] [--partition P] [--account A]
#       [--restarts N] [--dry-run] [--sbatch FLAG] ...
#       -- --config=configs/mllm.py:1p5b_pretrain --workdir=/shared/runs/mllm ...
# To be called on a login node, in a checkout on a file system that the nodes share; makes .venv there
# from requirements-gpu.txt unless PYTHON names another. 3 minutes before the time is up the run saves
# and the job is put into the queue again; a process that crashes is started again by
# launch/worker.sh; after a lost node or a preemption Slurm queues the job again. Call it again after
# anything else: it goes on from the last save, and waits for a job of this run that is still there.
# --dry-run prints the command and the script.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage="usage: bash launch/slurm.sh --nodes N --gpus GPUS_PER_NODE [options] -- --config=FILE --workdir=DIR ..."
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"

nodes="" gpus="" restarts=10 dry="" flags=()
while (($#)); do
  case $1 in
    --nodes | --gpus | --restarts)
      check_number "$1" "${2:-}"
      case $1 in
        --nodes) nodes=$2 ;;
        --gpus) gpus=$2 ;;
        --restarts) restarts=$2 ;;
      esac
      shift 2
      ;;
    --time) check "$1" "${2:-}" '[0-9]+([-:][0-9]+)*' "a time such as 2-00:00:00" && flags+=("--time=$2") && shift 2 ;;
    --partition | --account)
      check "$1" "${2:-}" '[A-Za-z0-9_.,-]+' "a name"
      flags+=("$1=$2") && shift 2
      ;;
    --sbatch) check "$1" "${2:-}" '--.+' "a flag of sbatch such as --constraint=h100" && flags+=("$2") && shift 2 ;;
    --dry-run) dry=1 && shift ;;
    -h | --help) echo "$usage" && exit ;;
    --) shift && break ;;
    *) fail "unknown argument $1" ;;
  esac
done
[[ $nodes ]] || fail "--nodes is missing"
[[ $gpus ]] || fail "--gpus is missing"
check_run "" "$@"
for argument in "$@"; do
  [[ $argument != --workdir=* ]] || workdir=$(cd "$root" && realpath -m "${argument#*=}")
done

python=${PYTHON:-$root/.venv/bin/python}
if [[ -z ${PYTHON:-} && -z $dry ]]; then
  cd "$root"
  # shellcheck source=launch/venv.sh
  source launch/venv.sh
  make_venv requirements-gpu.txt
fi

# One name per run, so that Slurm keeps two jobs of it apart.
flags+=(
  "--job-name=tarjax-$(basename "$workdir")-$(cksum <<<"$workdir" | cut -d' ' -f1)" --dependency=singleton
  --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" --exclusive
  --requeue --open-mode=append --signal=B:USR1@180 --output="$workdir/slurm-%j.log"
)
read -r -d '' script <<SCRIPT || true
#!/usr/bin/env bash
export PYTHON=$(printf %q "$python")
cd $(printf %q "$root")
again=""
trap 'again=1; scancel --signal=TERM "\$SLURM_JOB_ID"' USR1  # to the steps: all save
srun --kill-on-bad-exit=0 --wait=0 bash launch/worker.sh --restarts $restarts --$(printf ' %q' "$@") &
code=0; wait \$! || code=\$?
if [[ \$again ]]; then code=0; wait \$! || code=\$?; fi
if [[ \$again ]] && ((code != 0 && code != 2)); then exec scontrol requeue "\$SLURM_JOB_ID"; fi
exit \$code
SCRIPT
if [[ $dry ]]; then
  printf 'sbatch%s <<EOF\n%s\nEOF\n' "$(printf ' %q' "${flags[@]}")" "$script"
else
  mkdir -p "$workdir"
  sbatch "${flags[@]}" <<<"$script"
fi
