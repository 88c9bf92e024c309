"""Evaluations out of `config.evals`: built, run on a state, and what their views are where they say nothing.

`config.evals` has two levels, a module of `evals/` (or a method's `<name>_eval.py`) and an instance, which None leaves out; beside
the module's own keys each instance has `every` (a duration; without one it runs at the end only), `weights_from` (whose parameters:
"params", "memory/<path>", or "init" for the untrained network) and `batch_size`. A file of `--evals` may also name a module by its
dotted path; names in a config have no dots.

Views. An instance of the run's config that leaves a view out looks through the training's image view if it has no randomness, else
at the central part of the image at the model's size (`plain_views`). Everything that isn't in the run's config (a file of
`--evals`, a search, embeddings, an export) looks through what the run's evaluations look through (`default_views`). Texts: the
first caption with the training's tokenizer.
"""
import ast
from collections.abc import Callable, Iterable, Mapping
import time
from typing import Any, NamedTuple

import jax

from mcd_jax import configs, plugins
from mcd_jax.config import overrides, sections
from mcd_jax.evals import embedder
from mcd_jax.run import console
from mcd_jax.run import results as results_lib


class Eval(NamedTuple):
    """An evaluation, ready to run."""
    module: str
    instance: str
    every: int          # steps between runs; 0: at the end only
    weights_from: str
    batch_size: int
    fn: Callable        # fn(embed, state) -> {figure: float}
    heads: tuple = ("embed",)   # of the objective, whose outputs `embed` gives: HEADS of the module


# ---- what config.evals says ------------------------------------------------------------------------------------------------------

def evaluations(config: Any, chosen: Mapping | None = None) -> dict[str, dict[str, dict]]:
    """`config.evals`, or `chosen` in its place, as {module: {instance: settings}}, with the views that are left out.

    Raises:
      ValueError: an unknown module.
    """
    given = (config.evals.to_dict() if hasattr(config.evals, "to_dict") else dict(config.evals)) if chosen is None else chosen
    views = plain_views(config) if chosen is None else default_views(config)
    result = {}
    for module, instances in given.items():
        lookers = "views" in getattr(plugins.load("eval", module), "KEYS", ())
        own = {name: settings.to_dict() if hasattr(settings, "to_dict") else dict(settings)
               for name, settings in (instances or {}).items() if settings is not None}
        result[module] = {name: with_views(settings, views) if lookers else settings for name, settings in own.items()}
    return result


def plain_views(config: Any) -> dict[str, str]:
    """The pipes of "image" and "text" that instances of the run's own config take when they leave them out; {} without data."""
    data, model = getattr(config, "data", {}), getattr(config, "model", {})
    if not data.get("views") or "inputs" not in model:
        return {}
    given = str(data["views"].get("image", ""))   # an image view without randomness is what this model looks through
    views = {"image": given if _is_plain(given) else f"decode|center({model['inputs']['image_size']})"}
    if str(data["views"].get("text", "")).startswith("column("):
        return {**views, "text": data["views"]["text"]}
    for _, spec in sorted(data["views"].items(), key=lambda item: item[0] != "text"):   # the view called text, or the first
        last = ast.parse(spec.strip(), mode="eval").body
        last = ast.unparse(last.right if isinstance(last, ast.BinOp) else last)
        if last.startswith("tokenize("):
            return {**views, "text": f"caption('first')|{last}"}
    return views


def default_views(config: Any) -> dict[str, str]:
    """`plain_views`, with the image view of the first of the run's evaluations that has one without randomness."""
    views = plain_views(config)
    for instances in (config.evals.values() if views and "evals" in config else ()):
        for settings in (instances or {}).values():
            own = str(((settings or {}).get("views") or {}).get("image", ""))
            if _is_plain(own):
                return {**views, "image": own}
    return views


def _is_plain(pipe):
    return [part.strip().partition("(")[0] for part in pipe.split("|")] in (["decode", "center"], ["decode", "resize"], ["column"])


def with_views(settings: Mapping, views: Mapping) -> dict:
    """The settings of an instance with what its `views` lack."""
    return {**settings, "views": {**views, **(settings.get("views") or {})}} if views else dict(settings)


def read_evals(specs: Iterable[str]) -> dict[str, dict]:
    """One mapping like `config.evals` out of several "name:arguments" or "file.py:arguments"; later instances replace earlier ones.

    Raises:
      FileNotFoundError: no such name or file. ValueError: it can't be run, has no get_evals(arguments), or refuses the arguments.
    """
    chosen = {}
    for spec in specs:
        path, _, arguments = configs.resolve(spec, "evals").partition(":")
        module = overrides.imported(path, "--evals")
        if not callable(getattr(module, "get_evals", None)):
            raise ValueError(f"--evals={spec}: {path} has no get_evals(arguments) that returns a mapping like config.evals")
        for name, instances in overrides.called(path, module.get_evals, arguments).items():
            chosen[name] = {**chosen.get(name, {}), **instances}
    return chosen


# ---- built and run ---------------------------------------------------------------------------------------------------------------

def build(config, objective, durations=None, abstract=None, chosen=None) -> list[Eval]:
    """The evaluations of `config.evals`, each ready to run; sources are opened and pipes compiled here.

    Args:
      config: resolved ConfigDict.
      objective: an `Objective` with a head "embed".
      durations: (key name, duration) -> steps; None: `every` isn't looked at, which takes the number of training examples.
      abstract: a State or its shapes, so that a wrong `weights_from` is refused here; None: when it first runs.
      chosen: a mapping like `config.evals` to take in its place.

    Raises:
      ValueError: an unknown module, instance key, column, pipe or `weights_from`, with its name.
    """
    sections.check(config.evals if chosen is None else chosen, "evals", "evals")
    evals = []
    for module, instances in evaluations(config, chosen).items():
        plugin = plugins.load("eval", module)
        for name, settings in instances.items():
            key = f"evals.{module}.{name}"
            for option in ("n", "batch_size"):
                if settings.get(option) is not None and settings[option] < 1:
                    raise ValueError(f"config.{key}.{option}={settings[option]!r} must be at least 1")
            weights_from = settings.get("weights_from") or "params"
            if abstract is not None:
                _checked(lambda: embedder.parameters(abstract, weights_from), key)
            every = durations(f"{key}.every", settings.get("every")) if durations else 0
            size = settings.get("batch_size", 256)
            heads = tuple(getattr(plugin, "HEADS", ("embed",)))
            if lacking := [head for head in heads if head not in objective.heads]:
                raise ValueError(f"config.{key} needs an objective with the head {lacking[0]!r}: "
                                 f"this one has {', '.join(objective.heads) or 'none'}")
            fn = _checked(lambda: plugin.make(settings, name), key)
            evals.append(Eval(module, name, every, weights_from, size, fn, heads))
    return evals


def _checked(build_one, key):
    """`build_one()`, with a missing setting reported as the config key it is."""
    try:
        return build_one()
    except KeyError as error:
        raise ValueError(f"config.{key} needs the key {error.args[0]!r}") from error


def run(evals, state, step, job, workdir, stop=lambda: False, say=None, compiled=None, attempt=None) -> dict[str, float]:
    """Runs `evals` on `state` and merges their figures into `evals.json`.

    Args:
      evals: of `build`.
      state: on `job.mesh`. step: its number, written beside the figures.
      job: a `Job` or a `Trained`; its `init` makes the untrained state that weights_from="init" asks for.
      workdir: where evals.json lies; None: the figures are only returned.
      stop: asked before each evaluation, by all processes at the same point; once true, the rest is left out.
      say: called with a line after each evaluation.
      attempt: calls a function with its arguments, or gives None to end here; `Preemption.unless_asked`.
      compiled: a dict that keeps the compiled embedding functions from one call to the next.

    Returns:
      {"<module>/<instance>/<figure>": float} of what was run.
    """
    results, fresh = {}, None
    embeds = {} if compiled is None else compiled
    for e in evals:
        if stop():
            break
        start = time.time()
        if e.weights_from == "init" and fresh is None:
            fresh = job.init(jax.random.key(job.config.seed), None, state.memory.get("locked"))
        which = (e.weights_from, embedder.batch_rows(e.batch_size, job.mesh), e.heads)
        if which not in embeds:
            embeds[which] = embedder.on_mesh(job, *which)
        with console.waiting(f"{e.module}/{e.instance}: reading, compiling and embedding, usually 10-60 s"):
            arguments = embeds[which], fresh if e.weights_from == "init" else state
            figures = attempt(e.fn, *arguments) if attempt else e.fn(*arguments)
        if figures is None:
            break
        results.update({f"{e.module}/{e.instance}/{figure}": float(value) for figure, value in figures.items()})
        if say:
            bad = figures.get("bad")
            say(f"{e.module}/{e.instance} ({e.weights_from}): {time.time() - start:.1f} s"
                + (f"; left out: {bad:,.0f} images or texts that can't be used" if bad else ""))
    if jax.process_index() == 0 and results and workdir is not None:
        results_lib.write(workdir, results, step)
    return results
