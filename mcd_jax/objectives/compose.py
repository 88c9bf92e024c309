"""Several methods on one pair of towers: `config.objective.name = ("mcd", "gcl")`.

    config.objective = config_lib.objective(("mcd", "gcl"), mcd=dict(ema_m=0.99), gcl=dict(weights=dict(gcl=0.5)))
    --config.objective.gcl.weights.gcl=0.2

Each method keeps its own section of `config.objective`, under the last part of its name, and is built from it as if it stood alone.
The towers encode every view once for all of them (`two_tower.encode`). What a method owns carries its name: terms and metrics are
"gcl/i2t", `memory["mcd"]["teacher"]` is read by an evaluation as "memory/mcd/teacher". Parameters stay flat, because the towers are
shared: the first method's `init` makes them, and each other one adds its own entries; two methods with an entry of the same name
are refused, and so are two heads, but for "embed", which gives what any of them gives. The first method draws the random numbers
that it draws alone. What one draws for the batch (`ForwardPass.drawn_keys`) is a batch key that others can name as a view.
"""
from ml_collections import ConfigDict

from mcd_jax import config as config_lib
from mcd_jax import plugins
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective, apart


def objective(config: ConfigDict) -> Objective:
    """The `Objective` that config.objective.name names: one method's own, or several composed.

    Args:
      config: resolved ConfigDict; "name" is a method of `methods/` or a dotted path, or a tuple of them.

    Raises:
      ValueError: no such method, one that can't be composed, or methods that collide.
    """
    sections = config_lib.methods(config.objective)
    if tuple(sections) == ("",):
        return plugins.load("objective", config.objective.name).make(config)
    built = {}
    for name, section in sections.items():
        alone = ConfigDict({**config.to_dict(), "objective": section.to_dict()})
        built[name] = plugins.load("objective", section.name).make(alone)
        if built[name].parts is None:
            raise ValueError(f"config.objective.name: {section.name!r} can't be composed, because its Objective has no parts: "
                             "make it by two_tower.objective")
    return _composed(config, built)


def _composed(config, built):
    towers, parts = two_tower.towers_of(config), {name: one.parts for name, one in built.items()}
    drawn_keys = {key for part in parts.values() for key in part.drawn_keys}

    def key_of(number, key):
        return apart(key, number) if number else key

    def init(key, batch):
        params, owner = {}, {}
        for number, (name, one) in enumerate(built.items()):
            entries = one.init(key_of(number, key), batch)
            for entry in entries.keys() - set(two_tower.TOWERS):
                if entry in owner:
                    raise ValueError(f"config.objective.name: {owner[entry]!r} and {name!r} both make params/{entry}, and composed "
                                     "methods share nothing but the towers: train them apart, or set the weights that need it to 0")
                owner[entry] = name
            params = {**entries, **params}
        return params

    def init_memory(key, params, batch):
        fresh = {name: one.init_memory(key_of(number, key), params, batch) for number, (name, one) in enumerate(built.items())}
        return {name: memory for name, memory in fresh.items() if memory}

    def forward(params, memory, batch, key, step):
        key, last = two_tower.keys(key)
        memories = {name: memory.get(name, {}) for name in built}
        batch = two_tower.drawn(parts, batch, key)
        rows = two_tower.encode(config, towers, parts, params, memories, batch, key)
        out = {name: part.on_batch(rows[name], params, memories[name], batch, key_of(number, last), step)
               for number, (name, part) in enumerate(parts.items())}
        return {**out, "for_memory": {name: out[name].get("for_memory") for name in out}}

    def update_memory(memory, params, for_memory, step):
        return {name: built[name].update_memory(of_method, params, for_memory[name], step) for name, of_method in memory.items()}

    def more(params, encoded):
        embeddings = {}
        for part in parts.values():
            embeddings |= part.embed(params, encoded)
        return embeddings

    return Objective(
        needs=tuple(dict.fromkeys(key for one in built.values() for key in one.needs if key not in drawn_keys)),
        init=init,
        init_memory=init_memory,
        forward=forward,
        terms=_named(built, "terms"),
        metrics=_named(built, "metrics"),
        heads={**_heads(built), **two_tower.common_heads(towers, more)},
        update_memory=update_memory,
        behind=tuple(dict.fromkeys(modality for one in built.values() for modality in one.behind)),
        pooled=any(one.pooled for one in built.values()),
    )


def _named(built, field):
    """The terms or metrics of every method as functions of the composed `out`, under "<method>/<name>"."""
    return {f"{method}/{name}": lambda out, method=method, fn=fn: fn(out[method])
            for method, one in built.items() for name, fn in getattr(one, field).items()}


def _heads(built):
    heads, owner = {}, {}
    for method, one in built.items():
        for name, head in one.heads.items():
            if name not in two_tower.HEADS and name in heads:
                raise ValueError(f"config.objective.name: {owner[name]!r} and {method!r} both have a head {name!r}")
            heads[name], owner[name] = _on_own_memory(method, head), method
    return heads


def _on_own_memory(method, head):
    return lambda params, memory, batch: head(params, memory.get(method, {}), batch)
