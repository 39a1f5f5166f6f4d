"""Where a pipeline computes: on the default device, or on all of a mesh."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tarjax.sharding import batch_parts, batch_sharding, make_mesh, replicated


class Devices:
  """Puts numpy arrays on devices and gets them back.

  With a mesh, the rows of a batch lie apart on its data-parallel devices. On several processes all
  of them make the same calls with the same arrays: each computes its own rows and gets those of
  all. Without a mesh there is one device.
  """

  def __init__(self, mesh: jax.sharding.Mesh | None = None):
    self.mesh, self.parts = mesh, 1
    if mesh is not None:
      self.parts = batch_parts(mesh)
      self._gather = jax.jit(lambda x: x, out_shardings=replicated(mesh))

  @classmethod
  def all(cls) -> "Devices":
    """All that there are, each with rows of its own."""
    return cls(make_mesh({"data": -1}) if jax.device_count() > 1 else None)

  def copy(self, tree):
    """A tree of numpy arrays -> every device has all of it; arrays on devices stay as they are."""
    if self.mesh is None:
      return jax.device_put(tree)
    place = replicated(self.mesh)
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else spread(x, place), tree)

  def rows(self, x: np.ndarray) -> jax.Array:
    """[b ...], b as `batches` makes it -> on the devices, row by row."""
    return jnp.asarray(x) if self.mesh is None else spread(x, batch_sharding(self.mesh))

  def host(self, x) -> np.ndarray:
    """All of an array that was computed, on every process."""
    if self.mesh is not None and isinstance(x, jax.Array) and not x.is_fully_addressable:
      x = self._gather(x)
    return np.asarray(x)

  def batches(self, count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Row indices in batches; row 0 fills the last up to a power of two, and each to the devices.

    Yields (int[rows], how many of them are real): only these count.
    """
    for start in range(0, count, size):
      real = min(size, count - start)
      filled = min(size, 1 << (real - 1).bit_length())
      rows = np.zeros(-(-filled // self.parts) * self.parts, int)
      rows[:real] = np.arange(start, start + real)
      yield rows, real


def spread(x, sharding) -> jax.Array:
  """A numpy array that every process has -> a global one, of which each puts its own part."""
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
