"""Which random keys a function draws from, read off its jaxpr: nothing but keys and constants is computed."""
import jax
from jax.extend import core
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np

from mcd_jax import step as step_lib

_DRAWS = ("random_bits", "random_gamma")   # what turns a key into numbers


class _Unknown:
    """A value that doesn't follow from keys and constants alone, such as a pixel or a drawn number."""


UNKNOWN = _Unknown()


def uses(fn, key, *args):
    """[(bytes of a key, "draw" or how others are derived from it)] of fn(key, *args), in order; loops are unrolled.

    Keys that loops without a length draw from (rejection sampling), or that depend on `args`, are not seen.
    """
    closed, found = jax.make_jaxpr(fn)(key, *args), []
    # numbers that are thrown away, such as those of a tower that is locked, are none
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    _run(jaxpr, closed.consts, [key, *[UNKNOWN] * (len(jaxpr.invars) - 1)], found)
    return found


def twice(found):
    """The keys that numbers are drawn from twice, or drawn from and derived from, as sentences; [] where all is well.

    A key may be derived from in several ways (split, fold_in) as long as its children differ: equal ones show up here in turn.
    """
    drawn, parents, wrong = {}, set(), []
    for number, (data, how) in enumerate(found):
        if how != "draw":
            parents.add(data)
        elif data in drawn:
            wrong.append(f"numbers {drawn[data]} and {number} are drawn from one key")
        else:
            drawn[data] = number
    return wrong + [f"number {drawn[data]} is drawn from a key that others are derived from" for data in drawn.keys() & parents]


def _note(found, keys, how):
    if keys is not UNKNOWN:
        found += [(row.tobytes(), how) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2)]


def _run(jaxpr, consts, args, found):
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]
    for eqn in jaxpr.eqns:
        given = [read(atom) for atom in eqn.invars]
        out = _equation(eqn, given, found)
        values.update(zip(eqn.outvars, out))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn, given, found):
    name = eqn.primitive.name
    if name in _DRAWS:
        _note(found, given[0], "draw")
        return [UNKNOWN] * len(eqn.outvars)
    if name in ("random_split", "random_fold_in"):
        _note(found, given[0], name)
    if name == "scan":
        return _scan(eqn, given, found)
    inner = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params), None)
    if inner is not None:
        inner, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, [])
        return _run(inner, consts, given, found)
    if any(value is UNKNOWN for value in given) or name in ("while", "cond"):
        return [UNKNOWN] * len(eqn.outvars)
    out = eqn.primitive.bind(*given, **eqn.params)
    return out if eqn.primitive.multiple_results else [out]


def _scan(eqn, given, found):
    consts, carry = eqn.params["num_consts"], eqn.params["num_carry"]
    fixed, state, rows = given[:consts], given[consts:consts + carry], given[consts + carry:]
    inner, outs = eqn.params["jaxpr"], []
    for i in range(eqn.params["length"]):
        own = [row if row is UNKNOWN else row[i] for row in rows]
        result = _run(inner.jaxpr, inner.consts, [*fixed, *state, *own], found)
        state = result[:carry]
        outs.append(result[carry:])
    if eqn.params["reverse"]:
        raise NotImplementedError("a loop that runs backwards")
    stacked = [UNKNOWN if any(value is UNKNOWN for value in column) else jnp.stack(column) for column in zip(*outs)]
    return [*state, *stacked]


def of_a_method(objective, state, batch):
    """`twice` of what a method draws: its parameters and memory, and a step."""
    def init(key, batch):
        return step_lib.init_model(objective, key, batch)

    def forward(key, params, memory, batch):
        return objective.forward(params, memory, batch, key, state.step)
    key = jax.random.key(0)
    return twice(uses(init, key, batch)) + twice(uses(forward, key, state.params, state.memory, batch))
