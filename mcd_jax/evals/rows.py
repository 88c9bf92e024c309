"""Rows of a source for the evaluations: stored columns, texts, and embeddings in source order."""
import numpy as np

from mcd_jax.data import pipeline, sources


def open_source(spec, names, instance):
    """The source of `spec`, once its first row is seen to have the columns `names`.

    Raises:
      ValueError: it is empty or lacks a column; the message names the evaluation and the columns that exist.
    """
    source = sources.open(spec)
    if len(source) == 0:
        raise ValueError(f"config.evals.{instance}.source has no rows: {dict(spec)}")
    row = source[0]
    for name in names:
        if name not in row:
            raise ValueError(f"config.evals.{instance} reads column {name!r}, which its source does not have: "
                             f"there are {', '.join(sorted(row))}")
    return source


def columns(source, names, indices=None, ragged=()):
    """Stored columns: name -> numpy array of one value per row, or a list for names in `ragged`; images are not decoded.

    Args:
      indices: rows to read, all of them when None.
    """
    found = {name: [] for name in names}
    for index in range(len(source)) if indices is None else indices:
        row = source[int(index)]
        for name in names:
            found[name].append(row[name])
    return {name: values if name in ragged else np.asarray(values) for name, values in found.items()}


def select(table, where, instance):
    """Boolean mask over rows whose columns hold one of the wanted values: where = {column: value or list of values}."""
    keep = None
    for name, wanted in dict(where or {}).items():
        wanted = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
        match = np.isin(table[name], wanted)
        keep = match if keep is None else keep & match
        if not keep.any():
            raise ValueError(f"config.evals.{instance}: no row has {name} in {wanted}; "
                             f"found {sorted(map(str, set(table[name].tolist())))[:12]}")
    return np.ones(len(next(iter(table.values()))), bool) if keep is None else keep


def encode(embed, state, source, views, names, batch_size, indices=None):
    """Embeds rows in order.

    Args:
      embed: embed(state, batch) -> {"image": (n, D) float32, "text": ...}.
      views: `pipeline.Views`; names: those of its keys that the embedding takes ("image", "text").
      indices: (n,) source rows, all of them when None.

    Returns:
      (key -> (n, D) float32 arrays for every key that `embed` returns, (n,) bool: False for a row that can't be used, such as a
      corrupt image; what stands there belongs to another row).
    """
    parts, good = [], []
    for batch in pipeline.sequential(source, views, batch_size, seed=0, indices=indices):
        part = {}
        for name in names:  # one at a time: then all evaluations share two compiled functions
            part |= embed(state, {name: batch[name]})
        parts.append(part)
        good.append(~batch["bad"])
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, np.concatenate(good)


def pick(pipes, names, instance):
    """The compiled `pipeline.Views` of `names` out of the evaluation's `views`.

    Raises:
      ValueError: one is missing.
    """
    for name in names:
        if name not in pipes:
            raise ValueError(f"config.evals.{instance}.views needs a pipe for {name!r}: it has {', '.join(sorted(pipes))}")
    return pipeline.Views({name: pipes[name] for name in names})


def sample(source, where, n, instance):
    """At most `n` source rows (all when None) that fit `where`, evenly spaced and in order: int array."""
    rows = np.arange(len(source))
    if where:
        rows = rows[select(columns(source, where), where, instance)]
    if n is None or n >= len(rows):
        return rows
    return rows[np.linspace(0, len(rows) - 1, n).round().astype(int)]
