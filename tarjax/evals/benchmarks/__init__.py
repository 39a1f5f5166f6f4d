"""The table of benchmarks of understanding."""

from tarjax.evals.benchmarks.base import Benchmark
from tarjax.evals.benchmarks.gqa import GQA
from tarjax.evals.benchmarks.mmbench import MMBENCH
from tarjax.evals.benchmarks.mme import MME
from tarjax.evals.benchmarks.mmmu import MMMU
from tarjax.evals.benchmarks.pope import POPE
from tarjax.evals.benchmarks.seed import SEED

BENCHMARKS: dict[str, Benchmark] = {b.name: b for b in (POPE, MME, MMBENCH, SEED, GQA, MMMU)}
