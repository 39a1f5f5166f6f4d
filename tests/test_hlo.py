"""The reader of compiled programs on a small one, in the compiler's own notation, by hand."""

import pytest

from tarjax import hlo

SHAPE = "bf16[16,512]{1,0:T(8,128)(2,1)}"
TEXT = """HloModule jit_step, is_scheduled=true

%inside (a: bf16[16,256], b: bf16[256,512]) -> bf16[16,512] {
  %a = bf16[16,256]{1,0} parameter(0)
  %b = bf16[256,512]{1,0} parameter(1)
  ROOT %convolution.1 = SHAPE convolution(%a, %b), dim_labels=bf_io->bf
}

%slice (p: f32[3,16,512], q: s32[]) -> f32[1,16,512] {
  %p = f32[3,16,512]{2,1,0} parameter(0)
  %q = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %cut = f32[1,16,512]{2,1,0} dynamic-slice(%p, %q, %zero, %zero), dynamic_slice_sizes={1,16,512}
}

%add.1 (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (g: f32[256,512]) -> f32[64,512] {
  %g = f32[256,512]{1,0} parameter(0)
  %all-reduce.5 = f32[256,512]{1,0} all-reduce(%g), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add.1
  ROOT %part = f32[64,512]{1,0} dynamic-slice(%all-reduce.5), dynamic_slice_sizes={64,512}
}

%starting (s: bf16[64,512]) -> (bf16[64,512], bf16[256,512]) {
  %s = bf16[64,512]{1,0} parameter(0)
  %all-gather.7 = bf16[256,512]{1,0} all-gather(%s), replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}
  ROOT %cc = (bf16[64,512]{1,0}, bf16[256,512]{1,0}) custom-call(%all-gather.7), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (c: bf16[16,256], d: bf16[256,512]) -> bf16[16,512] {
  %c = bf16[16,256]{1,0} parameter(0)
  %d = bf16[256,512]{1,0} parameter(1)
  %all-gather.8 = bf16[256,512]{1,0} all-gather(%d), replica_groups={{0,1}}, dimensions={0}
  ROOT %convolution.2 = SHAPE convolution(%c, %d), dim_labels=bf_io->bf
}

%ending (e: bf16[256,512]) -> bf16[256,512] {
  %e = bf16[256,512]{1,0} parameter(0)
  %all-gather.9 = bf16[256,512]{1,0} all-gather(%e), replica_groups={{0,1}}, dimensions={0}
  ROOT %dd = bf16[256,512]{1,0} custom-call(%all-gather.9), custom_call_target="AsyncCollectiveDone"
}

%body (t: (s32[], bf16[16,256], bf16[256,512], f32[3,16,512])) -> (s32[], bf16[16,256]) {
  %t = (s32[], bf16[16,256]{1,0}, bf16[256,512]{1,0}, f32[3,16,512]{2,1,0}) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%t), index=0
  %x1 = bf16[16,256]{1,0} get-tuple-element(%t), index=1
  %w = bf16[256,512]{1,0} get-tuple-element(%t), index=2
  %stack = f32[3,16,512]{2,1,0} get-tuple-element(%t), index=3
  %fusion.1 = SHAPE fusion(%x1, %w), kind=kOutput, calls=%inside, metadata={op_name="jit(step)/mlp"}, backend_config={"window_config":{"estimated_cycles":"1000","cost_model_type":"COST_MODEL_TYPE_CLASSIC"}}
  %fusion.2 = f32[1,16,512]{2,1,0} fusion(%stack, %i), kind=kLoop, calls=%slice, backend_config={"window_config":{"estimated_cycles":"70","cost_model_type":"COST_MODEL_TYPE_INVALID"}}
  %start = (bf16[64,512]{1,0}, bf16[256,512]{1,0}) fusion(%w), kind=kCustom, calls=%starting
  %fusion.3 = SHAPE fusion(%x1, %w), kind=kOutput, calls=%async_collective_fusion.2, backend_config={"window_config":{"estimated_cycles":"1100","cost_model_type":"COST_MODEL_TYPE_CLASSIC"}}
  %done = bf16[256,512]{1,0} fusion(%w), kind=kCustom, calls=%ending
  %splash_mha_fwd.1 = bf16[2,4,256,128]{3,2,1,0} custom-call(%x1, %w), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="jit(step)/splash_causal/pallas_call"}
  ROOT %out = (s32[], bf16[16,256]{1,0}) tuple(%i, %x1)
}

%condition (u: (s32[], bf16[16,256])) -> pred[] {
  %u = (s32[], bf16[16,256]{1,0}) parameter(0)
  %at = s32[] get-tuple-element(%u), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%at, %three), direction=LT
}

ENTRY %main (arg: (s32[], bf16[16,256])) -> f32[64,512] {
  %arg = (s32[], bf16[16,256]{1,0}) parameter(0)
  %loop = (s32[], bf16[16,256]{1,0}) while(%arg), condition=%condition, body=%body
  %grads = f32[256,512]{1,0:T(8,128)S(1)} broadcast(%loop), backend_config={"window_config":{"estimated_cycles":"90","cost_model_type":"COST_MODEL_TYPE_INVALID"}}
  ROOT %fusion.9 = f32[64,512]{1,0} fusion(%grads), kind=kCustom, calls=%all-reduce-scatter.1
}
""".replace("SHAPE", SHAPE)  # fmt: skip


@pytest.fixture(scope="module")
def program():
  return hlo.Program(TEXT)


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
  assert steps["grads"].bytes == 0  # the result lies on the core


def test_collectives(program):
  gather, scatter = program.collectives(8)
  assert (gather.kind, gather.hidden, gather.bytes) == ("all-gather", True, 3 * 256 * 512 * 2 * 3 / 4)
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
  text = f"""ENTRY %main (a: f32[2,{given},8], b: f32[{size},8,4]) -> f32[2,{out},4] {{
  %a = f32[2,{given},8]{{2,1,0}} parameter(0)
  %b = f32[{size},8,4]{{2,1,0}} parameter(1)
  ROOT %c = f32[2,{out},4]{{2,1,0}} convolution(%a, %b), window={{{window}}}, dim_labels=b0f_0io->b0f
}}
"""
  [step] = hlo.Program(text).steps()
  assert step.flops == 2 * 2 * 8 * 4 * pairs


def test_a_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match="ENTRY"):
    hlo.Program("HloModule x")
