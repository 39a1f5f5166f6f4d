"""TensorFlow Datasets in array_record form, read without TensorFlow.

A data set is prepared elsewhere with `file_format="array_record"`. Which of its features are the
image and the caption follows from their types, unless said; a class label serves as a caption.
"""

from pathlib import Path
from typing import Any

from tarjax.data import fields, transforms
from tarjax.data.damage import located


class Tfds:
  """Examples of one split of a builder's folder, such as `data/mnist/3.0.1`.

  Args:
    path: the folder with dataset_info.json.
    subset: the split, e.g. "train" or "validation".
    image: the feature with the image; by default the first one that is an image.
    caption: the feature with the caption or class; by default the first one that is a text, or
      else a class.
    task: what an image with a caption becomes, "i2t" or "t2i".

  Raises:
    ValueError: no such data set, split or feature, another file format, or tensorflow-datasets
      is not installed; on reading, `Damaged`.
  """

  def __init__(self, path: str, subset: str, image: str = "", caption: str = "", task: str = "i2t"):
    tfds = _tfds()
    self._path, self._subset, self._task = path, subset, fields.check_task(task)
    if not (Path(path) / "dataset_info.json").is_file():
      raise ValueError(f"{path} is not a prepared data set: dataset_info.json is missing")
    builder = tfds.builder_from_directory(path)
    features, self._name = builder.info.features, builder.info.name
    if subset not in builder.info.splits:
      raise ValueError(f"{path} has no split {subset!r}; there are {sorted(builder.info.splits)}")
    kinds = tfds.features
    self._image = _choose(path, features, image, (kinds.Image,))
    self._caption = _choose(path, features, caption, (kinds.Text, kinds.ClassLabel))
    label: Any = features[self._caption] if self._caption else None
    self._names = label.names if isinstance(label, kinds.ClassLabel) else None
    raw = {self._image: tfds.decode.SkipDecoding()} if self._image else None
    try:
      self._data: Any = builder.as_data_source(subset, decoders=raw)
    except NotImplementedError as e:
      raise ValueError(f"{path} is not in array_record form: {e}") from e

  def __len__(self) -> int:
    return len(self._data)

  def where(self, index: int) -> tuple[str, int, str]:
    return f"{self._path}:{self._subset}", index, "record"

  def __getitem__(self, index: int) -> dict:
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of a source of {len(self)}")
    with located(*self.where(index)):
      example = self._data[index]
      found = {}
      if self._image:
        found["image"] = _present(example, self._image)
      if self._caption:
        caption = self._text(_present(example, self._caption))
        found["caption" if self._image else "text"] = caption
      return fields.make_record(
        found,
        transforms.to_rgb,
        name=f"{self._name}/{self._subset}/{index}",
        source=self._name,
        task=self._task,
      )

  def _text(self, value: Any) -> str:
    if self._names is not None:
      return self._names[int(value)]
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _present(example: Any, key: str) -> Any:
  if example.get(key) is None:
    raise ValueError(f"the feature {key!r} is missing")
  return example[key]


def _tfds() -> Any:
  try:
    import tensorflow_datasets  # an optional requirement
  except ImportError as e:
    raise ValueError("TFDS needs tensorflow-datasets: pip install -r requirements-data.txt") from e
  return tensorflow_datasets


def _choose(path: str, features: Any, name: str, kinds: tuple) -> str:
  """The feature of that name, or the first of the first of these kinds that there is, or ""."""
  if name and name not in features:
    raise ValueError(f"{path} has no feature {name!r}; there are {sorted(features)}")
  found = [key for kind in kinds for key, f in features.items() if isinstance(f, kind)]
  return name or next(iter(found), "")
