"""m2-Mix's losses as a ring against their gather form; nothing of its method is left where no term is live."""
import pytest

from mcd_jax.methods.m2mix import mixup
from tests.objectives.test_objectives import leaves_no_trace
from tests.sharding import test_ring as ring

LOSSES = {
    "m2": lambda x, y, scale, bias, implementation: mixup.m2(x, y, mixup.slerp(x, y, 0.3), scale, implementation=implementation),
    "v": lambda x, y, scale, bias, implementation: mixup.v_mix(x, y, 0.3, scale, implementation=implementation),
    "vl": lambda x, y, scale, bias, implementation: mixup.vl_mix(x, y, 0.3, scale, "both", True, implementation=implementation),
}


@pytest.mark.parametrize("mesh", ring.MESHES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_ring_equals_the_gather_form(name, mesh, monkeypatch):
    ring.equals_the_gather_form(LOSSES[name], mesh, monkeypatch)


def test_a_zero_weight_leaves_no_trace_in_the_compiled_step():
    leaves_no_trace("m2mix", {"m2": 0})
