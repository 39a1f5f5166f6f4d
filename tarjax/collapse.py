"""Codebooks that collapse: training with a few codes teaches nothing, so it stops.

`config.min_usage` is the share of codes that must be in use at each log line after
`config.min_usage_after` steps; usage is that of `metrics.CodeUsage`.
"""

from collections.abc import Mapping

from tarjax.nonfinite import Diverged


class Collapsed(Diverged):
  """Too few codes are in use: the run does not converge."""

  code = 4


def look(config, step: int, values: Mapping[str, float]) -> None:
  """Raises Collapsed when `values` of a log line show it."""
  if not config.min_usage or step <= config.min_usage_after:
    return
  usage = values.get("codes_usage", 1.0)
  if usage < config.min_usage:
    raise Collapsed(
      f"not converged: {usage:.1%} of the codes are in use at step {step}, of which "
      f"config.min_usage={config.min_usage:g} must be after {config.min_usage_after} steps"
    )
