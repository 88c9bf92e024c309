"""The training step: one for every method."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mcd_jax.optim import optimizer


class State(NamedTuple):
    """All that a run needs to continue: a checkpoint is this and nothing else."""
    step: Any    # int32 (): updates done
    params: Any
    opt: Any
    memory: Any
    key: Any     # typed random key; each step folds its number in


def init_state(objective, tx, key, batch, params=None):
    """State at step 0. `params`, all or some, replace fresh ones before memory starts, so that a teacher copies what was loaded."""
    params, memory, key = init_model(objective, key, batch, params)
    return State(jnp.int32(0), params, tx.init(params), memory, key)


def init_model(objective, key, batch, params=None):
    """(params, memory, key of the run) of `init_state`: all of a state but what an optimizer keeps."""
    k_params, k_memory, k_run = jax.random.split(key, 3)
    params = _over(objective.init(k_params, batch), params or {})
    return params, objective.init_memory(k_memory, params, batch), k_run


def _over(fresh, loaded):
    """Nested dicts: the leaves of `fresh`, those that `loaded` has replaced."""
    return {k: _over(v, loaded.get(k, {})) if isinstance(v, dict) else loaded.get(k, v) for k, v in fresh.items()}


def make_step(objective, tx, weights):
    """The pure update `(state, batch) -> (state, metrics)`.

    Args:
      objective: an `Objective`.
      tx: the transformation that `optimizer.make` built.
      weights: term -> number, or a function of the step. A term of constant weight 0 isn't traced.

    Raises:
      ValueError: a weight that names no term.
    """
    for name in weights:
        if name not in objective.terms:
            raise ValueError(f"config.objective.weights.{name} names no term: there are {', '.join(objective.terms)}")
    live = {n: w for n, w in weights.items() if callable(w) or w != 0}

    def step(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        factors = {n: w(state.step) if callable(w) else w for n, w in live.items()}

        def loss_fn(params):
            out = objective.forward(params, state.memory, batch, key, state.step)
            terms = {n: objective.terms[n](out) for n in live}
            total = sum((factors[n] * terms[n] for n in live), jnp.float32(0))
            return total, (terms, {n: f(out) for n, f in objective.metrics.items()}, out.get("for_memory"))

        (loss, (terms, metrics, for_memory)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = optimizer.was_finite(opt)
        memory = jax.tree.map(lambda new, old: jnp.where(finite, new, old),
                              objective.update_memory(state.memory, params, for_memory, state.step), state.memory)
        report = {"loss": loss, **{f"loss/{n}": t for n, t in terms.items()}, **metrics,
                  **{f"weight/{n}": f for n, f in factors.items() if callable(weights[n])},
                  "grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates),
                  "param_norm": optax.tree.norm(params), **optimizer.skipped(opt)}
        return State(state.step + 1, params, opt, memory, state.key), report

    return step


def with_average(objective, decay):
    """`objective` with an exponential average of all parameters kept in `memory["ema"]`."""
    def init_memory(key, params, batch):
        return {**objective.init_memory(key, params, batch), "ema": jax.tree.map(jnp.copy, params)}

    def update_memory(memory, params, for_memory, step):
        rest = {k: v for k, v in memory.items() if k != "ema"}
        rest = objective.update_memory(rest, params, for_memory, step)
        return {**rest, "ema": jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, memory["ema"], params)}

    return objective._replace(init_memory=init_memory, update_memory=update_memory)
