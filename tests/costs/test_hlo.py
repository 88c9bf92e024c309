"""The account of a compiled program against programs whose traffic and collectives are known."""
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import pytest

from mcd_jax.costs import hlo
from mcd_jax.sharding import mesh as mesh_lib


def test_sizes():
    assert hlo.size("f32[8,16]{1,0:T(8,128)}") == 512
    assert hlo.size("(bf16[4]{0}, s32[], pred[3,3]{1,0})") == 8 + 4 + 9
    assert hlo.size("f32[0]{0}") == 0 and hlo.size("token[]") == 0


def test_a_loop_counts_as_often_as_it_runs():
    mesh = mesh_lib.make({"data": 4})

    def local(x):
        return jax.lax.scan(lambda c, _: (jax.lax.psum(jnp.sin(c), "data") * 0.5, None), x, length=7)[0]
    with jax.set_mesh(mesh):
        f = jax.jit(jax.shard_map(local, in_specs=P("data"), out_specs=P("data"), check_vma=False))
        text = f.lower(jax.ShapeDtypeStruct((4096,), jnp.float32, sharding=mesh_lib.batch_sharding(mesh))).compile().as_text()
    assert hlo.collectives(text) == {"all-reduce": {"count": 7, "bytes": 7 * 4096, "async": 0, "hidden": 0}}


@pytest.mark.parametrize("steps", [1, 5])
def test_traffic_of_matrix_products(steps):
    """Each step reads two 256 x 256 matrices and writes one; a stacked weight is read a slice at a time."""
    def f(x, ws):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]
    size = 256 * 256 * 4
    text = jax.jit(f).lower(jnp.zeros((256, 256)), jnp.zeros((steps, 256, 256))).compile().as_text()
    assert 3 * size * steps <= hlo.traffic(text) <= 9 * size * steps + 4 * size


TPU = """HloModule jit_step
%fused (param_0: bf16[64,128]) -> f32[64,128] {
  %param_0 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %convert = f32[64,128]{1,0:T(8,128)} convert(%param_0)
}
%body (arg: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %arg = (s32[], bf16[64,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %start = (bf16[64,128]{1,0}, bf16[64,128]{1,0}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %done = bf16[64,128]{1,0} collective-permute-done(%start)
  ROOT %out = (s32[], bf16[64,128]{1,0}) tuple(%x, %done)
}
%cond (arg.1: (s32[], bf16[64,128])) -> pred[] {
  %constant.1188.clone.2 = s32[]{:T(128)} constant(16)
  %arg.1 = (s32[], bf16[64,128]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt.88 = pred[]{:T(512)} compare(%i, %constant.1188.clone.2), direction=LT
}
ENTRY %main (p: bf16[64,128]) -> f32[64,128] {
  %p = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %init = (s32[], bf16[64,128]{1,0}) tuple(%p)
  %loop = (s32[], bf16[64,128]{1,0}) while(%init), condition=%cond, body=%body
  %y = bf16[64,128]{1,0} get-tuple-element(%loop), index=1
  ROOT %f = f32[64,128]{1,0} fusion(%y), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/convert"}
}
"""


def test_the_text_of_a_tpu_program():
    size = 64 * 128 * 2
    assert hlo.collectives(TPU) == {"collective-permute": {"count": 16, "bytes": 16 * size, "async": 16, "hidden": 0}}
    busy = TPU.replace("  %done", "  %y = f32[64,64]{1,0} convolution(%x, %x), dim_labels=bf_oi->bf\n  %done")
    assert hlo.collectives(busy)["collective-permute"]["hidden"] == 16
    noted = TPU.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"4"}}')
    assert hlo.collectives(noted)["collective-permute"]["count"] == 4
    assert hlo.traffic(TPU) == 16 * (3 * size + 9) + size + 2 * size   # 9: the comparison of the counter
    assert (2 * size, "fusion", "f", "jit(step)/convert") in hlo.largest(TPU, 2)
