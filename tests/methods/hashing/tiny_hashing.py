"""The hashing methods at the size of a toy."""
from cases import Case
import slow_hashing

FORMULAS = slow_hashing.of_terms()
CASES = {
    "ahlr": Case((3.67126, 22.48045, 0.06565, 22.89402), FORMULAS, dict(bits=16), weights=dict(balance=0.5), steps=2),   # behind a
    # layer that starts at 0 nothing moves before the second step
    "dchmt": Case((13.14587, 135.73476, 0.11145, 91.58788), FORMULAS, dict(bits=16), slow=True, rtol=1e-4),   # square roots of
    # distances that are nearly zero at the start
    "dsph": Case((2.94172, 17.36151, 0.06277, 14.38391), FORMULAS, dict(bits=16, threshold=0.1), slow=True),
}


def stored(method, weights=None, rows=None, **changes):
    """`tiny.build` of a method over stored embeddings of width 8: nothing but its heads."""
    import numpy as np
    import tiny
    rng, tower = np.random.default_rng(0), dict(name="stored", width=8, proj="none")
    embeddings = {name: rng.normal(size=(tiny.BATCH, 8)).astype(np.float32) for name in ("image", "text")}
    return tiny.build(method, weights, dict(image=tower, text=tower), {**embeddings, **(rows or {})}, **changes)
