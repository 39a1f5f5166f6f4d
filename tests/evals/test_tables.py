"""Reading the public layouts, and naming what is wrong with other ones."""

import benchmark_data
import numpy as np
import pytest

from tarjax.config import UserError
from tarjax.evals.benchmarks import BENCHMARKS
from tarjax.evals.tables import Table


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return benchmark_data.write_all(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_question_comes_with_its_pictures(data, name):
  table = Table(BENCHMARKS[name], data)
  rows = benchmark_data.KNOWN[name]["rows"]
  assert table.questions == benchmark_data.KNOWN[name]["prompts"] and len(table) == len(rows)
  wanted = [0, 3, 6, 7, 8, 20, len(rows) - 1]
  shown = dict(table.images(wanted))
  assert list(shown) == wanted
  for i, images in shown.items():
    first = [i, 100 + int(rows[i].get("imageId", "n0")[1:])][name == "gqa"]
    assert all(image.shape == (4, 6, 3) for image in images)
    values = [int(image[0, 0, 0]) for image in images]
    if name == "seed" and rows[i]["data_type"] == "video":
      assert values == [first, first + 1]
    else:
      assert set(values) == {first}


def test_a_limit_takes_whole_units(data):
  assert len(Table(BENCHMARKS["pope"], data, 5)) == 5
  assert len(Table(BENCHMARKS["mme"], data, 5)) == 10
  table = Table(BENCHMARKS["mmbench"], data, 2)
  assert {row["index"] % 10**6 for row in table.rows} == {0, 1}
  assert len(table) == sum(r["index"] % 10**6 < 2 for r in benchmark_data.KNOWN["mmbench"]["rows"])


def test_other_files_of_the_folder_are_left_alone(tmp_path):
  benchmark_data.write_all(tmp_path, ["mmbench"])
  (tmp_path / "MMBench/cn").mkdir()
  (tmp_path / "MMBench/cn/dev-00000-of-00001.parquet").write_text("not read")
  assert len(Table(BENCHMARKS["mmbench"], tmp_path)) == len(benchmark_data.KNOWN["mmbench"]["rows"])


def test_several_files_are_one_table(tmp_path):
  rows = benchmark_data.rows_of("pope")
  for i in range(3):
    part = tmp_path / f"POPE/data/test-0000{i}-of-00003.parquet"
    benchmark_data.write(part, rows[i * 10 : i * 10 + 10])
  table = Table(BENCHMARKS["pope"], tmp_path)
  assert [i for i, _ in table.images([9, 10, 25])] == [9, 10, 25]
  assert [int(x[0][0, 0, 0]) for _, x in table.images([9, 10, 25])] == [9, 10, 25]


def break_nothing(data):
  pass


def break_files(data):
  next(data.glob("POPE/data/*")).unlink()


def break_column(data):
  rows = [{k: v for k, v in row.items() if k != "answer"} for row in benchmark_data.rows_of("pope")]
  benchmark_data.write(data / benchmark_data.FILES["pope"], rows)


def break_footer(data):
  path = data / benchmark_data.FILES["pope"]
  path.write_bytes(path.read_bytes()[:-100])


def break_answer(data):
  rows = benchmark_data.rows_of("pope")
  benchmark_data.write(data / benchmark_data.FILES["pope"], [*rows, rows[0] | {"answer": "3"}])


def break_type(data):
  rows = [row | {"question": 5} for row in benchmark_data.rows_of("pope")]
  benchmark_data.write(data / benchmark_data.FILES["pope"], rows)


def break_rows(data):
  path = data / benchmark_data.FILES["pope"]
  table = benchmark_data.pq.read_table(path)
  benchmark_data.pq.write_table(table.slice(0, 0), path)


@pytest.mark.parametrize(
  "spoil, name, said",
  [
    (break_nothing, "mme", "mme: {data} has no folder MME (a copy of lmms-lab/MME)"),
    (break_nothing, "mmbench", "has no folder MMBench or MMBench_EN"),
    (break_files, "pope", "{data}/POPE has no file like data/test-*.parquet or test-*.parquet"),
    (break_column, "pope", "test-00000-of-00001.parquet has no column 'answer'; it has"),
    (break_footer, "pope", "test-00000-of-00001.parquet is not a whole parquet file"),
    (break_answer, "pope", "question '0' has the answer '3'"),
    (break_type, "pope", "pope: {data}/POPE is of another layout"),
    (break_rows, "pope", "have no rows"),
  ],
)
def test_what_is_wrong_is_named(tmp_path, spoil, name, said):
  benchmark_data.write_all(tmp_path, ["pope"])
  spoil(tmp_path)
  with pytest.raises(UserError) as told:
    Table(BENCHMARKS[name], tmp_path)
  assert said.format(data=tmp_path) in str(told.value) and "\n" not in str(told.value)


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
  rows = benchmark_data.rows_of("pope")
  rows[8]["image"] = {"bytes": b"no picture", "path": "8.png"}
  path = benchmark_data.write(tmp_path / benchmark_data.FILES["pope"], rows)
  with pytest.raises(UserError, match=f"row 8 of {path}: the image is not an image file"):
    list(Table(BENCHMARKS["pope"], tmp_path).images([1, 8]))


def test_a_question_without_its_linked_picture_is_named(tmp_path):
  benchmark_data.write_all(tmp_path, ["gqa"])
  benchmark_data.write(
    tmp_path / "GQA/testdev_balanced_images/testdev-00000-of-00001.parquet",
    [{"id": "n0", "image": benchmark_data.png(0)}],
  )
  with pytest.raises(UserError, match="no file in .*GQA has picture 'n1'"):
    Table(BENCHMARKS["gqa"], tmp_path)


def test_pictures_are_read_as_they_are(data):
  (_, images), *_ = Table(BENCHMARKS["seed"], data).images([0])
  assert images[0].dtype == np.uint8
