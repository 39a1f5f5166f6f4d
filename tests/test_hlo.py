"""The reader of compiled programs on a small one, in the compiler's own notation, by hand."""

from pathlib import Path

import pytest

from tarjax import hlo


@pytest.fixture(scope="module")
def program():
  return hlo.Program((Path(__file__).parent / "small_step.hlo").read_text())


def test_a_loop_counts_its_trips(program):
  steps = {s.name: s for s in program.steps()}
  assert steps["fusion.1"].trips == 3
  assert steps["fusion.1"].flops == 3 * 2 * 16 * 256 * 512
  assert steps["fusion.1"].cycles == 3000 and steps["fusion.1"].calibrated
  assert steps["fusion.1"].op_name == "jit(step)/mlp"
  assert steps["fusion.3"].flops == steps["fusion.1"].flops  # a product beside a gather
  assert "done" not in steps and "start" not in steps


def test_a_slice_of_a_stack_moves_the_slice_only(program):
  steps = {s.name: s for s in program.steps()}
  assert steps["fusion.2"].bytes == 3 * 2 * 16 * 512 * 4
  assert steps["fusion.1"].bytes == 3 * 2 * (16 * 256 + 256 * 512 + 16 * 512)
  assert not steps["fusion.2"].calibrated
  assert steps["grads"].bytes == 16 * 256 * 2 + 4  # what is read; the result lies on the core


def test_collectives(program):
  gather, scatter = program.collectives(8)
  assert (gather.kind, gather.hidden, gather.bytes) == (
    "all-gather",
    True,
    3 * 256 * 512 * 2 * 3 / 4,
  )
  assert gather.groups == [[0, 1, 2, 3], [4, 5, 6, 7]] or len(gather.groups[0]) == 4
  assert (scatter.kind, scatter.hidden) == ("reduce-scatter", False)
  assert scatter.bytes == 256 * 512 * 4 * 3 / 4 and scatter.dtype == "f32"
  assert hlo.totals([gather, scatter, scatter])["reduce-scatter"] == 2 * scatter.bytes


def test_a_kernels_line_goes_on_over_several(program):
  [(kernel, _, times)] = program.kernels(lambda i: "splash" in i.name)
  assert times == 3 and kernel.op_name == "jit(step)/splash_causal/pallas_call"


@pytest.mark.parametrize(
  "written, groups",
  [
    ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
    ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=3], device_ids=([3,2]T(1,0)) {'a'}", [[0, 1], [2, 3], [4, 5]]),
    ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ("", [[0, 1, 2, 3]]),
  ],
)
def test_groups(written, groups):
  assert hlo.replica_groups(f", {written}, dimensions={{0}}", 4) == groups


@pytest.mark.parametrize(
  "window, given, size, out, pairs",
  [
    ("size=3 pad=1_1", 5, 3, 5, 13),  # a padded convolution: 3 x 5 less one at each end
    ("size=12 pad=11_11 rhs_reversal=1", 1, 12, 12, 12),  # heads, written as one
    ("size=16 stride=15 lhs_dilate=16", 16, 16, 16, 16),  # a batch, written as one
    ("size=16", 16, 16, 1, 16),  # a sum over 16 rows
  ],
)
def test_products_are_written_as_convolutions(window, given, size, out, pairs):
  labels = "dim_labels=b0f_0io->b0f"
  text = f"""ENTRY %main (a: f32[2,{given},8], b: f32[{size},8,4]) -> f32[2,{out},4] {{
  %a = f32[2,{given},8]{{2,1,0}} parameter(0)
  %b = f32[{size},8,4]{{2,1,0}} parameter(1)
  ROOT %c = f32[2,{out},4]{{2,1,0}} convolution(%a, %b), window={{{window}}}, {labels}
}}
"""
  [step] = hlo.Program(text).steps()
  assert step.flops == 2 * 2 * 8 * 4 * pairs


def test_a_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match="ENTRY"):
    hlo.Program("HloModule x")
