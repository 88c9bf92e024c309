"""MCD, whose teacher and views are what other methods are made of, on every mesh in every way."""
import pytest

from tests.objectives import test_scale as scale


@pytest.mark.full
@pytest.mark.parametrize("mesh", scale.NO_EXPERTS)
def test_every_mesh_the_other_way_round(mesh):
    scale.compare("mcd", mesh, *[(1, "gather"), (2, "ring")][scale.NO_EXPERTS.index(mesh) % 2])


@pytest.mark.full
@pytest.mark.parametrize("mesh", scale.NO_EXPERTS)
def test_transformers_on_every_mesh(mesh):
    scale.transformers("mcd", mesh)


@pytest.mark.full
def test_collectives_of_the_step():
    scale.collectives("mcd")
