"""Rules over parameter paths: (regex, value) pairs where the first match wins and nothing stays uncovered."""
import re

import jax


def name(path):
    """The path of a leaf as jax.tree_util gives it, as text: "image/block_0/mlp/in/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths(tree):
    """{"image/block_0/mlp/in/kernel": leaf, ...} in the tree's own order."""
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def first(rules, path, ends=False):
    """The value of the first rule whose regex matches the whole path, or None; with `ends`, the path or what follows a "/" of it.

    Args:
      rules: sequence of (regex, value) pairs that `match` has accepted.
    """
    parts = path.split("/")
    names = ["/".join(parts[i:]) for i in range(len(parts) if ends else 1)]
    return next((value for regex, value in rules if any(re.fullmatch(regex, name) for name in names)), None)


def match(rules, tree, key, allow_unused=False):
    """{path: value of the first rule whose regex matches the whole path}, for every leaf of `tree`.

    Args:
      rules: sequence of (regex, value) pairs.
      tree: any pytree; only its paths matter.
      key: the config key that the rules come from, for the error messages.
      allow_unused: accept a regex that matches no path; otherwise only ".*" may, since it is likely a typing error.

    Raises:
      ValueError: a rule is no such pair or matches nothing, or paths are left uncovered.
    """
    compiled = []
    for rule in rules:
        if not isinstance(rule, (tuple, list)) or len(rule) != 2 or not isinstance(rule[0], str):
            raise ValueError(f"{key}: {rule!r} is not a (regex, value) pair")
        try:
            compiled.append((re.compile(rule[0]), rule[1]))
        except re.error as error:
            raise ValueError(f"{key}: {rule[0]!r} is not a regular expression: {error}") from error
    every = list(paths(tree))
    found, uncovered = {}, []
    for path in every:
        value = next(((value,) for regex, value in compiled if regex.fullmatch(path)), None)
        if value is None:
            uncovered.append(path)
        else:
            found[path] = value[0]
    for regex, _ in compiled:
        if not allow_unused and regex.pattern != ".*" and not any(regex.fullmatch(path) for path in every):
            raise ValueError(f"{key}: {regex.pattern!r} matches no parameter; there are {_some(every)}")
    if uncovered:
        raise ValueError(f"{key}: no rule matches {_some(uncovered)}; every parameter needs one, "
                         f"for example a last rule for '.*'")
    return found


def _some(names, limit=12):
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
