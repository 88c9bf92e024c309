"""The text tower: which tokens are seen, where it pools, padding. Helpers are those of test_models.py."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import CONTEXT, DIM, EOT, RESNET, SIZE, TEXT, VOCAB, close, init, make, tokens

from mcd_jax.models import towers


@pytest.mark.parametrize("causal", [True, False])
def test_which_tokens_are_seen(causal):
    """Gradients of one output token by the embedded tokens: causal sees the past, bidirectional everything but padding."""
    built = make(text={"causal": causal, "pool": "eot" if causal else "mean"})
    params = init(built)

    def token(position):
        text = {**params["text"], "position": position}
        return (built.text({**params, "text": text}, tokens())["tokens"][1, 1] ** 3).sum()

    seen = np.abs(np.asarray(jax.jit(jax.grad(token))(params["text"]["position"]))).sum(1) > 0
    assert seen.tolist() == [True, True, False, False, False, False]
    if not causal:  # row 0 has a fifth real token, which its second one sees
        def first(position):
            return (built.text({**params, "text": {**params["text"], "position": position}}, tokens())["tokens"][0, 1] ** 3).sum()
        seen = np.abs(np.asarray(jax.jit(jax.grad(first))(params["text"]["position"]))).sum(1) > 0
        assert seen.tolist() == [True, True, True, True, True, False]


def test_text_pooling():
    no_eot = jnp.asarray([[5, 6, 7, 8, 9, 10]], jnp.int32)
    empty = jnp.zeros((1, CONTEXT), jnp.int32)
    words = jnp.concatenate([tokens(), no_eot, empty])
    expected = {"eot": (4, 1, 5, 5, 5), "last": (4, 1, 5, 5, 0), "first": (0, 0, 0, 0, 0)}
    params = None
    for pool, where in expected.items():
        built = make(text={"causal": pool != "first", "pool": pool})
        params = params or init(built)
        out = jax.jit(built.text)(params, words)
        close(out["pooled"], out["tokens"][np.arange(5), np.asarray(where)])
    built = make(text={"causal": False, "pool": "mean"})
    out = jax.jit(built.text)(params, words)
    close(out["pooled"][1], out["tokens"][1, :2].mean(0))
    assert np.isfinite(out["z"]).all() and (out["pooled"][4] == 0).all()
    repeated = jnp.asarray([[5, EOT, 7, EOT, 0, 0]], jnp.int32)
    out = jax.jit(make().text)(params, repeated)
    close(out["pooled"], out["tokens"][:, 1])


def test_padding_other_than_0():
    """The same text with another padding: nothing changes, and where the padding is the end of text its first one counts."""
    words = jnp.asarray([[5, 0, EOT, 7, 7, 7], [5, 6, 8, 9, 3, EOT]], jnp.int32)
    for options in ({"causal": False, "pool": "mean"}, {"causal": False, "pool": "map"}, {"pool": "last"}, {"pool": "eot"}):
        config = {"image": RESNET, "text": {**TEXT, **options}, "embed_dim": DIM}
        built, same = (towers.make(config, VOCAB, CONTEXT, EOT, SIZE, pad) for pad in (7, EOT))
        params = init(built)
        z = jax.jit(built.text)(params, words)["z"]
        close(z[:1], jax.jit(built.text)(params, words[:1, :3])["z"])
        if options["pool"] != "last":
            close(z, jax.jit(same.text)(params, jnp.where(words == 7, EOT, words))["z"])


@pytest.mark.parametrize("pool", ["class", "map"])
def test_padding_does_not_change_bidirectional_text(pool):
    built = make(text={"causal": False, "pool": pool})
    params = init(built)
    z = [jax.jit(built.text)(params, tokens()[1:2, :length])["z"] for length in (3, 6)]
    close(*z)


def test_a_text_tower_without_blocks_is_a_bag_of_words():
    bag = towers.make({"image": {"name": "resnet", "widths": (8,), "depths": (1,)}, "embed_dim": 4, "text": {
        "name": "text", "width": 8, "depth": 0, "num_heads": 1, "pool": "mean", "causal": False}}, 16, 4, 1, 16)
    params = bag.init(jax.random.key(0))
    params["text"]["position"] = jnp.zeros_like(params["text"]["position"])
    one, other = bag.text(params, jnp.array([[5, 7, 1, 0], [7, 5, 1, 0]]))["z"]
    np.testing.assert_allclose(one, other, rtol=1e-5)
    with pytest.raises(ValueError, match="depth=0 at least 1"):
        towers.make({"image": {"name": "resnet"}, "embed_dim": 4, "text": {"name": "text", "depth": 0}}, 16, 4, 1, 16)
