# shellcheck shell=bash
# Sourced by the launchers of runs on a CPU: `small_steps LEVEL` before the verbs.

# LEVEL is how far XLA optimizes programs: in runs of minutes, more takes longer than it saves.
small_steps() {
  # glibc gives memory back after every step and faults it in again at the next: keep it.
  export MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184
  export MALLOC_TOP_PAD_=268435456 GLIBC_TUNABLES=glibc.malloc.hugetlb=1
  export XLA_FLAGS="--xla_backend_optimization_level=$1 ${XLA_FLAGS:-}"
}
