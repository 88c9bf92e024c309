"""GCL's losses as a ring against their gather form."""
import jax.numpy as jnp
import pytest

from mcd_jax.methods.gcl import modalities
from tests.sharding import test_ring as ring

LOSSES = {
    "all": lambda x, y, scale, bias, implementation: modalities.generalized(
        {"i": x, "t": y, "it": ring.unit(x + 2 * y)}, scale, implementation=implementation),
    "unmasked": lambda x, y, scale, bias, implementation: modalities.generalized(
        {"i": x, "t": y, "it": ring.unit(x + y)}, scale, {("i", "t"): 1.0, ("it", "i"): 0.5}, False, implementation),
    "separation": lambda x, y, scale, bias, implementation: modalities.separation(x, y, scale, ring.rows(3), implementation),
    "separation labels": lambda x, y, scale, bias, implementation: modalities.separation(
        x, y, scale, jnp.arange(ring.B) % 5, implementation),
}


@pytest.mark.parametrize("mesh", ring.MESHES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_ring_equals_the_gather_form(name, mesh, monkeypatch):
    ring.equals_the_gather_form(LOSSES[name], mesh, monkeypatch)
