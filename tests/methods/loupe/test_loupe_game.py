"""Games: golden interactions, the definition by permutations, sampling without bias and with the expected error."""
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcd_jax.methods.loupe import game

N = 6


def contains(wanted):
    """1 iff all of `wanted` take part."""
    return lambda masks: jnp.all(masks[:, jnp.asarray(wanted)], axis=1).astype(jnp.float32)


def touches(wanted):
    """1 iff any of `wanted` takes part."""
    return lambda masks: jnp.any(masks[:, jnp.asarray(wanted)], axis=1).astype(jnp.float32)


def table(seed, n=N):
    """A game of random worths: (f for masks, worths (2**n,))."""
    worths = np.random.default_rng(seed).normal(size=2 ** n)
    places = jnp.asarray(2 ** np.arange(n))
    return lambda masks: jnp.asarray(worths, jnp.float32)[masks.astype(jnp.int32) @ places], worths


def value_by_orders(f, players):
    """Shapley values by walking through all orders: {player: value}; f takes a frozenset."""
    found, orders = dict.fromkeys(players, 0.0), list(itertools.permutations(players))
    for order in orders:
        there = frozenset()
        for player in order:
            found[player] += (f(there | {player}) - f(there)) / len(orders)
            there |= {player}
    return found


def slow_interaction(f, n, coalition):
    """The definition: the coalition as one player, less each member alone in a game without the others."""
    rest = [i for i in range(n) if i not in coalition]
    def opened(subset):
        return frozenset().union(*(coalition if i == "S" else (i,) for i in subset))
    total = value_by_orders(lambda s: f(opened(s)), [*rest, "S"])["S"]
    return total - sum(value_by_orders(f, [*rest, i])[i] for i in coalition)


def interaction_index(f, n, coalition):
    """The Shapley interaction index of Grabisch and Roubens."""
    rest, s = [i for i in range(n) if i not in coalition], len(coalition)
    total = 0.0
    for size in range(len(rest) + 1):
        weight = math.factorial(size) * math.factorial(n - size - s) / math.factorial(n - s + 1)
        for subset in itertools.combinations(rest, size):
            for count in range(s + 1):
                for part in itertools.combinations(coalition, count):
                    total += weight * (-1) ** (s - count) * f(frozenset(subset) | set(part))
    return total


GOLDEN = [
    (contains((0, 1)), (0, 1), 1), (contains((1, 2, 4)), (1, 2, 4), 1), (contains((0, 1, 2, 3)), (0, 1), 1 / 3),
    (contains((0, 1, 2, 3)), (0, 1, 2), 1 / 2), (contains((0, 1)), (0, 1, 2), 1), (contains((3, 4)), (0, 1), 0),
    (contains((1, 3)), (0, 1), 0), (touches((0, 1)), (0, 1), -1), (touches((0, 1, 2)), (0, 1, 2), -2),
]


@pytest.mark.parametrize("f, coalition, want", GOLDEN)
def test_golden_interactions(f, coalition, want):
    np.testing.assert_allclose(game.interaction(f, N, coalition), want, atol=1e-6)


def test_an_additive_game_has_no_interaction_and_its_worths_are_the_values():
    worths = jnp.asarray([0.5, -1.0, 2.0, 0.0, 3.0, -0.25])
    f = lambda masks: 7.0 + masks @ worths
    for coalition in ((0, 1), (2, 3, 5), (0, 1, 2, 3, 4, 5), (4,)):
        np.testing.assert_allclose(game.interaction(f, N, coalition), 0, atol=2e-6)
    np.testing.assert_allclose(game.shapley_weights(N) @ f(game.subsets(N)), worths, atol=2e-6)


@pytest.mark.parametrize("coalition", [(2,), (1, 4), (0, 2, 5), (0, 1, 3, 4), (0, 1, 2, 3, 4, 5)])
def test_interactions_equal_the_definition_over_all_orders(coalition):
    _, worths = table(1)
    f = lambda subset: worths[sum(1 << i for i in subset)]
    want = slow_interaction(f, N, coalition)
    np.testing.assert_allclose(game.interaction_weights(N, coalition) @ worths, want, atol=1e-12)
    index = interaction_index(f, N, coalition)
    if len(coalition) == 2:
        np.testing.assert_allclose(want, index, atol=1e-12)
    if len(coalition) >= 3:
        assert abs(want - index) > 0.05   # the index is another quantity: a library of it can't stand in


def test_values_equal_all_orders_and_are_efficient():
    _, worths = table(2)
    values = value_by_orders(lambda subset: worths[sum(1 << i for i in subset)], list(range(N)))
    np.testing.assert_allclose(game.shapley_weights(N) @ worths, [values[i] for i in range(N)], atol=1e-12)
    np.testing.assert_allclose(np.sum(game.shapley_weights(N) @ worths), worths[-1] - worths[0], atol=1e-5)


def test_relabelling_moves_interactions_along_and_games_add_up():
    f, _ = table(3)
    g, _ = table(4)
    order = np.array([3, 0, 5, 1, 4, 2])
    renamed = lambda masks: f(masks[:, order])     # player order[i] plays the part of i
    np.testing.assert_allclose(game.interaction(renamed, N, order[[0, 2, 3]]), game.interaction(f, N, (0, 2, 3)), atol=1e-5)
    both = lambda masks: 2 * f(masks) - 3 * g(masks)
    want = 2 * game.interaction(f, N, (1, 5)) - 3 * game.interaction(g, N, (1, 5))
    np.testing.assert_allclose(game.interaction(both, N, (1, 5)), want, atol=1e-5)


def test_a_player_without_influence_changes_nothing():
    f, _ = table(5, 4)
    more = lambda masks: f(masks[:, jnp.asarray([0, 2, 3, 5])])
    np.testing.assert_allclose(game.interaction(more, N, (0, 3, 5)), game.interaction(f, 4, (0, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("every", [False, True])
def test_sampling_is_unbiased_and_its_error_falls_as_one_over_the_root(every):
    f, _ = table(6)
    coalitions = [(0, 1), (1, 2, 4), (0, 1, 2, 3, 4, 5)]
    masks = jnp.asarray([[i in coalition for i in range(N)] for coalition in coalitions])
    repeats, errors = jax.random.split(jax.random.key(0), 400), {}
    exact = np.array([game.interaction_weights(N, coalition) for coalition in coalitions]) @ table(6)[1]
    for samples in (16, 256):
        one = jax.vmap(lambda key, mask: game.sampled(f, mask, key, samples, every), (0, None))
        found = np.asarray(jax.jit(jax.vmap(one, (None, 0)))(repeats, masks))
        standard = found.std(1, ddof=1) / 20
        assert (np.abs(found.mean(1) - exact) < 4 * standard + 1e-5).all()
        errors[samples] = np.sqrt(np.mean((found - exact[:, None]) ** 2, axis=1))
    fall = errors[16] / errors[256]
    assert (fall[:2] > 3.3).all() and (fall[:2] < 4.8).all()
    if every:
        assert errors[256][2] < 1e-5   # with all players inside, T is empty: nothing is drawn, nothing errs
    else:
        assert 3.3 < fall[2] < 4.8


def test_sizes_are_uniform_and_subsets_uniform_among_their_size():
    coalition = jnp.zeros(N, bool).at[jnp.asarray((1, 4))].set(True)
    masks, _ = game.draw(jax.random.key(1), coalition, 20_000)
    outside = np.asarray(masks[:, 2])                       # T itself
    assert not outside[:, [1, 4]].any()
    sizes = np.bincount(outside.sum(1), minlength=5) / len(outside)
    np.testing.assert_allclose(sizes, 0.2, atol=0.012)
    two = outside[outside.sum(1) == 2] @ 2 ** np.arange(N)
    shares = np.unique(two, return_counts=True)[1] / len(two)
    assert len(shares) == 6
    np.testing.assert_allclose(shares, 1 / 6, atol=0.02)


def test_chunks_change_nothing_and_must_divide():
    f, _ = table(7)
    mask = jnp.asarray([True, False, True, False, False, True])
    whole = game.sampled(f, mask, jax.random.key(2), 24)
    np.testing.assert_allclose(game.sampled(f, mask, jax.random.key(2), 24, chunk=6), whole, rtol=1e-6)
    with pytest.raises(ValueError, match="chunk=7 must divide the 24 samples"):
        game.sampled(f, mask, jax.random.key(2), 24, chunk=7)


def test_an_empty_coalition_and_a_single_player_interact_with_nobody():
    f, _ = table(8)
    for mask in (jnp.zeros(N, bool), jnp.zeros(N, bool).at[2].set(True)):
        np.testing.assert_allclose(game.sampled(f, mask, jax.random.key(3), 32), 0, atol=1e-6)


def test_pair_weights_are_those_of_every_row_and_column():
    f, _ = table(9)
    worths = f(jnp.asarray(game.subsets(N)))
    found = jnp.asarray(game.pair_weights(2, 4), jnp.float32) @ worths
    for i in range(2):
        for j in range(4):
            np.testing.assert_allclose(found[i, j], game.interaction(f, N, (i, 2 + j)), atol=1e-5)


@pytest.mark.parametrize("call, words", [
    (lambda: game.subsets(17), r"2\*\*17 subsets: it takes 1 to 16"),
    (lambda: game.interaction_weights(4, (1, 1)), r"\(1, 1\) must be different players out of 0 .. 3"),
    (lambda: game.interaction_weights(4, (1, 4)), r"out of 0 .. 3"),
])
def test_what_can_not_be_computed_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
