"""Maps of what a match rests on: Grad-CAM by finite differences, proposals by loops, grounding of answers that are known."""
import argparse
import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax import job
from mcd_jax.data import sources
from mcd_jax.evals import boxes, grounding
from mcd_jax.methods.albef import attention_analysis, attention_section, fusion_layers
from mcd_jax.models import bert, transformer
from tests.methods.loupe import test_loupe_boxes as known

L, M, W, HEADS, DEPTH = 4, 5, 8, 2, 2


def made(**changes):
    options = dict(width=W, depth=1, num_heads=HEADS, mlp_dim=12, **changes)
    tower = bert.make(options, vocab_size=16, context=L, eot=2, dtype=jnp.float32)
    found = fusion_layers.make(tower, DEPTH, W)
    rng, shapes = np.random.default_rng(1), jax.eval_shape(found.init, jax.random.key(0))
    params = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), {k: shapes[k] for k in ("fusion", "itm")})
    return jax.jit(found.relevance), jax.jit(found.fuse), jax.jit(found.match), params


def inputs(b=2):
    rng = np.random.default_rng(0)
    seen = np.arange(L)[None] < np.array([[L], [L - 1]])[:b]
    return rng.normal(size=(b, L, W)), seen, rng.normal(size=(b, M, W))


def slow_logit(params, states, seen, image, shifts):
    """(match logit, weights) of one pair by BERT's equations in float64; shifts (layers, heads, L, M) are added to the weights."""
    dense = lambda x, p: x @ p["kernel"] + p["bias"]
    norm = lambda x, p: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]
    gelu = lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / 2 ** 0.5))

    def attend(x, keys, p, mask, shift):
        out, weights = np.zeros_like(x), []
        q, k, v = dense(x, p["q"]), dense(keys, p["k"]), dense(keys, p["v"])
        for head in range(HEADS):
            part = slice(head * W // HEADS, (head + 1) * W // HEADS)
            logits = q[:, part] @ k[:, part].T / (W // HEADS) ** 0.5
            logits[:, ~mask] = -np.inf
            own = np.exp(logits - logits.max(1, keepdims=True))
            weights.append(own / own.sum(1, keepdims=True))
            out[:, part] = (weights[-1] + shift[head]) @ v[:, part]
        return dense(out, p["out"]), weights

    x, every = states, []
    for i in range(DEPTH):
        p = params["fusion"][f"block_{i}"]
        y, _ = attend(x, x, p["attn"], seen, np.zeros((HEADS, 1, 1)))
        x = norm(x + y, p["ln_attn"])
        y, weights = attend(x, image, p["cross"], np.ones(M, bool), shifts[i])
        x = norm(x + y, p["ln_cross"])
        x = norm(x + dense(gelu(dense(x, p["mlp"]["in"])), p["mlp"]["out"]), p["ln_mlp"])
        every.append(weights)
    return x[seen].mean(0) @ params["itm"]["kernel"][:, 1] + params["itm"]["bias"][1], np.array(every)


@pytest.fixture(scope="module")
def built():
    """The functions, parameters, inputs and what they give."""
    relevance, fuse, match, params = made()
    states, seen, image = inputs()
    x = tuple(map(jnp.asarray, (states.astype(np.float32), seen, image.astype(np.float32))))
    return relevance, fuse, match, params, x, relevance(params, *x)


def test_maps_are_weights_times_positive_gradients_by_finite_differences(built):
    _, fuse, match, params, x, (logits, maps) = built
    numbers, step, biggest = jax.tree.map(lambda x: np.asarray(x, np.float64), params), 1e-5, 0.0
    for row, (states, seen, image) in enumerate(zip(*inputs())):
        zero = np.zeros((DEPTH, HEADS, L, M))
        logit, weights = slow_logit(numbers, states, seen, image, zero)
        np.testing.assert_allclose(logits[row, 1], logit, rtol=1e-4, atol=1e-4)
        gradient = np.zeros_like(zero)
        for at in np.ndindex(zero.shape):
            shift = zero.copy()
            shift[at] = step
            gradient[at] = (slow_logit(numbers, states, seen, image, shift)[0] - logit) / step
        want = (weights * np.maximum(gradient, 0)).mean(1) * seen[None, :, None]
        np.testing.assert_allclose(maps[row], want, rtol=2e-2, atol=2e-4 * np.abs(want).max())
        biggest = max(biggest, want.max())
        assert (gradient < 0).any() and (want == 0).any()
    assert biggest > 1e-3
    np.testing.assert_allclose(logits, match(params["itm"], fuse(params["fusion"], *x)["pooled"]), rtol=1e-4, atol=1e-5)


def test_maps_of_stacked_layers_are_the_same_and_padding_changes_nothing(built):
    relevance, _, _, params, (states, seen, image), (_, maps) = built
    _, stacked = made(scan=True)[0]({**params, "fusion": transformer.stacked(params["fusion"])}, states, seen, image)
    np.testing.assert_allclose(stacked, maps, rtol=1e-4, atol=1e-7)
    _, other = relevance(params, states.at[1, -1].set(7.0), seen, image)   # what stands at the padding of row 1
    np.testing.assert_allclose(other, maps, rtol=1e-4, atol=1e-7)
    assert float(jnp.max(jnp.abs(maps[1, :, -1]))) == 0 < float(jnp.max(maps[0, :, -1]))


def test_the_head_drops_the_pooled_vector():
    """A grid of 2 x 2 cells behind the pooled vector."""
    objective, batch = job.objective_of(tiny.config("albef")), tiny.batch()
    params = jax.eval_shape(objective.init, jax.random.key(0), batch)
    out = jax.eval_shape(objective.heads["heat"], params, {}, {k: batch[k] for k in ("image", "text")})
    assert out["heat"].shape == (8, 1, tiny.CONTEXT, 4) and out["score"].shape == (8,)


# ---- proposals -------------------------------------------------------------------------------------------------------------------

def test_proposals_are_scored_by_the_heat_inside_them():
    heat, height, width = np.random.default_rng(0).random(16), 24, 40
    given = known.some_boxes(3, 5)
    pixels = cv2.resize(heat.reshape(4, 4).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    want = []
    for left, top, right, bottom in given * [width, height, width, height]:
        total = sum(float(pixels[y, x]) for y in range(height) for x in range(width)
                    if int(top) <= y < int(bottom) and int(left) <= x < int(right))
        want.append(total / ((right - left) * (bottom - top)) ** 0.5)
    np.testing.assert_allclose(boxes.proposal_scores(heat, given, height, width), want, rtol=1e-5)
    flat = np.array([[0, 0, 1, 1], [0, 0, .5, .5], [0.25, 0.25, 0.5, 0.5]])   # by hand: n pixels of heat 1 over sqrt(n)
    np.testing.assert_allclose(boxes.proposal_scores(np.ones(16), flat, 40, 40), [40, 20, 10])
    np.testing.assert_allclose(boxes.proposal_scores(np.ones(16), flat, 40, 40, power=1.0), [1, 1, 1])
    spot = np.zeros((4, 4))
    spot[1, 1] = 1
    assert np.argmax(boxes.proposal_scores(spot.reshape(-1), flat, 40, 40)) == 2   # the smallest that holds it


# ---- grounding -------------------------------------------------------------------------------------------------------------------

class Reader(known.Oracle):
    """Heads of a network that reads image and name together: hot, in its second layer, where the named thing is."""
    heads = frozenset(("embed", "states", "heat"))
    cold = False

    def states(self, batch):
        rows = self.next(batch)
        return {"image_states": np.array([self.rows.index(row) for row in rows], np.float32)[:, None]}

    def heat(self, batch):
        side, found = 24, []
        middle = (np.arange(side) + 0.5) / side
        for number, tokens in zip(batch["image_states"][:, 0], batch["text"]):
            row, at = self.rows[int(number)], self.places[tuple(tokens)]
            box = row["boxes"][(row["names"].index(self.names[at]) + self.wrong) % 4]
            rows, columns = (middle >= box[1]) & (middle <= box[3]), (middle >= box[0]) & (middle <= box[2])
            # (layers, L, N): hot in the second layer, at the first word
            right = (rows[:, None] & columns[None]).reshape(-1) * (0.0 if self.cold else 1.0)
            cold = [0 * right] * (len(tokens) - 2)
            found.append([[1 - right, 1 - right, *cold], [right, 0 * right, *cold], [1 - right, 1 - right, *cold]])
        return {"heat": np.array(found, np.float32), "score": np.zeros(len(found), np.float32)}


    def __call__(self, state, batch):
        return self.states(batch)


def reading(wrong=False, cold=False):
    reader = Reader(sources.open(known.SPEC), wrong)
    reader.cold = cold
    tokens = grounding.rows.tokens(grounding.rows.Texts(reader.names), grounding.rows.pick(known.VIEWS, ["text"], "toy"), None, 8)
    reader.places = {tuple(row): at for at, row in enumerate(tokens)}
    return reader


def read(wrong=False, cold=False, **more):
    settings = dict(source=known.SPEC, views=known.VIEWS, use="heat", batch_size=5, proposals="boxes", **more)
    return grounding.make(settings, "toy")(reading(wrong, cold), None)


def test_grounding_by_maps_of_pairs():
    perfect = read()
    assert perfect["accuracy@0.5"] == perfect["accuracy_proposals@0.5"] == 1 and 0.8 < perfect["mean_iou"] < 1
    assert (perfect["queries"], perfect["images"], perfect["chance_proposals"]) == (48, 12, 0.25)
    wrong = read(wrong=True)
    assert wrong["accuracy@0.5"] == wrong["accuracy_proposals@0.5"] == 0
    assert read(layer=2)["accuracy@0.5"] == 1 and read(layer=1)["accuracy@0.5"] == 0
    assert read(cold=True)["accuracy_proposals@0.5"] == 0   # a map without heat chooses nothing
    with pytest.raises(ValueError, match=r"evals\.grounding\.toy\.layer=4: this objective's head 'heat' has 3"):
        read(layer=4)
    with pytest.raises(ValueError, match=r"evals\.grounding\.toy\.layer=-1 must be the number of a map"):
        read(layer=-1)


def test_heat_maps_of_two_towers_choose_among_proposals_too():
    oracle = known.Oracle(sources.open(known.SPEC))
    assert known.ground(oracle, use="dense", proposals="boxes")["accuracy_proposals@0.5"] == 1
    with pytest.raises(ValueError, match=r"toy\.proposals: the head 'regions' has boxes of its own"):
        known.ground(known.Oracle(sources.open(known.SPEC)), use="regions", proposals="boxes")


# ---- the page --------------------------------------------------------------------------------------------------------------------

def test_the_page_shows_every_name_with_its_map():
    """Of a reader that knows: the box around the hottest part is the true one, and the drawn map is red there alone."""
    settings = dict(source=known.SPEC, views=known.VIEWS)
    chosen = argparse.Namespace(images=12, seed=0, layer=2)
    found = attention_analysis.draw(reading(), None, settings, "grounding", "toy", chosen, 12)
    texts = [text for row in found["rows"] for text in row["texts"]]
    assert (found["layer"], found["layers"], len(found["rows"]), len(texts)) == (2, 3, 12, 48)
    assert min(text["iou"] for text in texts) > 0.5 and all(text["own"] and text["words"] for text in texts)
    html = str(attention_section.section({**found, "instance": "grounding.toy", "step": 3}))
    assert all(text["text"] in html and text["map"] in html for text in texts)
    hot = np.zeros((4, 4))
    hot[0, 3] = 1
    drawn = attention_analysis.overlay(np.full((8, 8, 3), 100, np.uint8), hot.reshape(-1)).astype(int)
    red = drawn[..., 0] - drawn[..., 2]
    assert red[:20, -20:].min() > 100 > 20 > abs(red[:, :50]).max()


def test_instances_of_the_page():
    evals = dict(retrieval=dict(untrained=dict(weights_from="init"), test=dict(weights_from="params")), grounding=dict(mosaics={}))
    assert attention_analysis.instance_of(evals, "")[:2] == ("grounding", "mosaics")
    assert attention_analysis.instance_of(evals, "test")[:2] == ("retrieval", "test")
    with pytest.raises(ValueError, match=r"--instance=untrained must be an instance of config\.evals\.grounding or \.retrieval"):
        attention_analysis.instance_of(evals, "untrained")
