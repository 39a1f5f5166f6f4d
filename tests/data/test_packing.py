"""Rows of packed examples: what a row holds, what is left out, and that nothing else matters."""

import threading

import numpy as np
import pytest

from tarjax.data import packing
from tarjax.data.tokens import IGNORE, Vocab

VOCAB = Vocab(
  turn_start=1,
  turn_end=2,
  pad=0,
  newline=3,
  im_start=100,
  im_end=101,
  scale0=102,
  image0=105,
  codes=20,
  size=125,
  system=(),
  assistant=(),
)


def example(i):
  """Text of 10 to 59 tokens whose values name the example."""
  length = 10 + i * 7919 % 50
  tokens = np.full(length, 1000 + i, np.int32)
  return tokens, np.where(np.arange(length) < 5, IGNORE, tokens).astype(np.int32)


def make(seed=0, rows=0, length=128, window=512):
  return packing.Packer(example, VOCAB, length=length, window=window, rows=rows, seed=seed)


def test_row_layout():
  row = packing.fill_row([example(0), example(1)], 40, pad=9)
  assert all(v.dtype == np.int32 and v.shape == (40,) for v in row.values())
  assert row["segments"].tolist() == [1] * 10 + [2] * 29 + [0]
  assert row["positions"].tolist() == [*range(10), *range(29), 0]
  assert row["tokens"].tolist() == [1000] * 10 + [1001] * 29 + [9]
  assert row["labels"].tolist() == [-100] * 5 + [1000] * 5 + [-100] * 5 + [1001] * 24 + [-100]


def test_first_label_of_a_segment_is_ignored():
  document = np.arange(5, dtype=np.int32) + 50
  row = packing.fill_row([(document, document), (document, document)], 12, pad=0)
  assert row["labels"].tolist() == [-100, 51, 52, 53, 54, -100, 51, 52, 53, 54, -100, -100]


def test_first_fit_decreasing():
  assert packing.plan_rows([3, 7, 5, 5, 9], 3, 10) == [[4], [1, 0], [2, 3]]
  assert packing.plan_rows([6, 6, 6], 2, 10) == [[0], [1]]


def test_examples_are_whole_and_appear_once():
  packer = make()
  seen = []
  for r in range(2 * packer.rows):
    row = packer.row(r)
    for segment in range(1, row["segments"].max() + 1):
      tokens = row["tokens"][row["segments"] == segment]
      i = int(tokens[0]) - 1000
      assert i // 512 == r // packer.rows
      assert (tokens == example(i)[0]).all()
      seen.append(i)
  assert len(seen) == len(set(seen))
  stats = packer.stats
  assert stats["examples"] == 1024
  assert len(seen) == 1024 - stats["left_out"] - stats["skipped"]
  assert stats["tokens"] / stats["room"] > 0.93
  assert stats["left_out"] < 0.01 * 1024


def test_a_row_names_its_members():
  packer = make()
  for r in (3, packer.rows, 2 * packer.rows + 1):
    row = packer.row(r)
    held = row["tokens"][row["segments"] > 0] - 1000
    assert packer.members(r) == list(dict.fromkeys(held.tolist()))
  assert any(len(packer.members(r)) > 1 for r in range(packer.rows))


def test_too_few_rows_leave_examples_out():
  packer = make(rows=100)
  packer.row(0)
  assert packer.stats["left_out"] > 50
  assert packer.stats["tokens"] / packer.stats["room"] > 0.97


def test_rows_do_not_depend_on_what_was_asked_before():
  packer = make(rows=130)
  order = np.random.default_rng(0).permutation(130 * 6)[:60].tolist()
  rows = {r: packer.row(r) for r in order}  # windows are dropped and packed again
  fresh = make(rows=130)
  for r in sorted(order):
    expected = fresh.row(r)
    assert all((rows[r][k] == expected[k]).all() for k in expected)


def test_seed_changes_the_order_of_rows():
  packers = [make(seed=s, rows=130) for s in (0, 1)]
  first = [[bytes(p.row(r)["tokens"]) for r in range(130)] for p in packers]
  assert first[0] != first[1]
  assert sorted(first[0]) == sorted(first[1])


def test_long_examples_are_not_kept_together():
  packer = make(rows=0)
  longest = np.array([np.bincount(packer.row(r)["segments"]).max() for r in range(packer.rows)])
  half = packer.rows // 2
  assert abs(longest[:half].mean() - longest[half:].mean()) < 5


def test_threads_share_a_window():
  calls, lock = [], threading.Lock()

  def counted(i):
    with lock:
      calls.append(i)
    return example(i)

  packer = packing.Packer(counted, VOCAB, length=128, window=64, rows=20)
  rows = [None] * 20

  def work(k):
    for r in range(k, 20, 4):
      rows[r] = packer.row(r)

  threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(calls) == list(range(64))
  expected = packing.Packer(example, VOCAB, length=128, window=64, rows=20)
  assert all((rows[r]["tokens"] == expected.row(r)["tokens"]).all() for r in range(20))


def test_a_failure_reaches_the_reader_and_is_not_remembered():
  broken = [True]

  def fails(i):
    if broken[0]:
      raise ValueError("record 3 is damaged")
    return example(i)

  packer = packing.Packer(fails, VOCAB, length=128, window=64, rows=20)
  with pytest.raises(ValueError, match="record 3 is damaged"):
    packer.row(0)
  broken[0] = False
  assert packer.row(0)["segments"].max() > 0


def test_truncation_never_cuts_an_image():
  image = [100, 102, 110, 111, 112, 101]
  tokens = np.array([7, 8, 9, *image, 4, 5], np.int32)
  for length in range(2, 12):
    fitted = packing.fit((tokens, tokens), length, VOCAB)
    if 4 <= length <= 8:
      assert fitted is None
    else:
      assert fitted is not None
      assert fitted[0].tolist() == tokens[:length].tolist()


def test_examples_without_a_label_are_skipped():
  tokens = np.arange(10, dtype=np.int32)
  labels = np.where(tokens >= 6, tokens, IGNORE).astype(np.int32)
  assert packing.fit((tokens, labels), 6, VOCAB) is None
  assert packing.fit((tokens, labels), 7, VOCAB) is not None


def test_row_length_too_small_for_anything():
  picture = np.full(50, 110, np.int32)
  with pytest.raises(ValueError, match="none of the first 8 examples fits a row of 16"):
    packing.Packer(lambda i: (picture, picture), VOCAB, length=16, window=8)
