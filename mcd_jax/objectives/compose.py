"""Several methods on one pair of towers: `config.objective.name = ("mcd", "gcl")`.

    config.objective = config_lib.objective(("mcd", "gcl"), mcd=dict(ema_m=0.99), gcl=dict(weights=dict(gcl=0.5)))
    --config.objective.gcl.weights.gcl=0.2

Each method keeps its own section of `config.objective`, under the last part of its name, and is built from it as if it stood alone.
The towers encode every view once for all of them (`pair.encode`). What a method owns carries its name: terms and metrics are
"gcl/i2t", `memory["mcd"]["teacher"]` is read by an evaluation as "memory/mcd/teacher". Parameters stay flat, because the towers are
shared: the first method's `init` makes them, and each other one adds its own entries; two methods with an entry of the same name
are refused, and so are two heads, but for "embed", which gives what any of them gives. The first method draws the random numbers
that it draws alone.
"""
import jax
from ml_collections import ConfigDict

from mcd_jax import config as config_lib
from mcd_jax import load
from mcd_jax.objectives import Objective, pair


def objective(config):
    """The `Objective` that config.objective.name names: one method's own, or several composed.

    Args:
      config: resolved ConfigDict; "name" is a module of `objectives/` or a dotted path, or a tuple of them.

    Raises:
      ValueError: no such method, one that can't be composed, or methods that collide.
    """
    sections = config_lib.methods(config.objective)
    if tuple(sections) == ("",):
        return load.load("objectives", config.objective.name).make(config)
    built = {}
    for name, section in sections.items():
        own = ConfigDict({**config.to_dict(), "objective": section.to_dict()})
        built[name] = load.load("objectives", section.name).make(own)
        if built[name].parts is None:
            raise ValueError(f"config.objective.name: {section.name!r} can't be composed, because its Objective has no parts: "
                             "make it by pair.objective")
    return _composed(config, built)


def _composed(config, built):
    towers, parts = pair.towers_of(config), {name: one.parts for name, one in built.items()}

    def key_of(number, key):
        return jax.random.fold_in(key, number) if number else key

    def init(key, batch):
        params, owner = {}, {}
        for number, (name, one) in enumerate(built.items()):
            found = one.init(key_of(number, key), batch)
            for entry in found.keys() - set(pair.TOWERS):
                if entry in owner:
                    raise ValueError(f"config.objective.name: {owner[entry]!r} and {name!r} both make params/{entry}, and composed "
                                     "methods share nothing but the towers: train them apart, or set the weights that need it to 0")
                owner[entry] = name
            params = {**found, **params}
        return params

    def start(key, params, batch):
        found = {name: one.start(key_of(number, key), params, batch) for number, (name, one) in enumerate(built.items())}
        return {name: memory for name, memory in found.items() if memory}

    def forward(params, memory, batch, key, step):
        key, last = pair.keys(key)
        memories = {name: memory.get(name, {}) for name in built}
        batch = pair.drawn(parts, batch, key)
        rows = pair.encode(config, towers, parts, params, memories, batch, key)
        out = {name: part.finish(rows[name], params, memories[name], batch, key_of(number, last), step)
               for number, (name, part) in enumerate(parts.items())}
        return {**out, "keep": {name: out[name].get("keep") for name in out}}

    def remember(memory, params, keep, step):
        return {name: built[name].remember(own, params, keep[name], step) for name, own in memory.items()}

    def more(params, encoded):
        found = {}
        for part in parts.values():
            found |= part.embed(params, encoded)
        return found

    return Objective(
        needs=tuple(dict.fromkeys(key for one in built.values() for key in one.needs)),
        init=init,
        start=start,
        forward=forward,
        terms=_named(built, "terms"),
        metrics=_named(built, "metrics"),
        heads={**_heads(built), "embed": pair.embed_head(towers, more), "dense": pair.dense_head(towers)},
        remember=remember,
    )


def _named(built, field):
    """The terms or metrics of every method as functions of the composed `out`, under "<method>/<name>"."""
    return {f"{method}/{name}": lambda out, method=method, fn=fn: fn(out[method])
            for method, one in built.items() for name, fn in getattr(one, field).items()}


def _heads(built):
    heads, owner = {}, {}
    for method, one in built.items():
        for name, head in one.heads.items():
            if name not in pair.HEADS and name in heads:
                raise ValueError(f"config.objective.name: {owner[name]!r} and {method!r} both have a head {name!r}")
            heads[name], owner[name] = _on_own_memory(method, head), method
    return heads


def _on_own_memory(method, head):
    return lambda params, memory, batch: head(params, memory.get(method, {}), batch)
