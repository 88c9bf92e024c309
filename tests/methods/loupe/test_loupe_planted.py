"""LOUPE on planted images: two blocks of colour, a caption of two words that name them, each word a phrase."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax import job
from mcd_jax import step as step_lib
from mcd_jax.optim import optimizer

CELL, BLOCK, CELLS, ROWS = 4, 3, 6, 16   # pixels of a token's cell; cells of a block and of an image, on each side
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255]])


def planted(rng, size=ROWS):
    """(batch, colours (size, 2), quarters (size, 2)): what is drawn, and where, in the order of the words."""
    image = rng.integers(96, 160, (size, CELLS * CELL, CELLS * CELL, 3))
    colours, quarters = (np.stack([rng.permutation(n)[:2] for _ in range(size)]) for n in (len(COLOURS), 4))
    for row, drawn, at in zip(image, colours, quarters):
        for colour, quarter in zip(drawn, at):
            top, left = (BLOCK * CELL * n for n in divmod(quarter, 2))
            row[top:top + BLOCK * CELL, left:left + BLOCK * CELL] = COLOURS[colour]
    text = np.zeros((size, tiny.CONTEXT), np.int32)
    text[:, :2], text[:, 2] = colours + 3, tiny.EOT
    phrases = np.broadcast_to(np.int32([[0, 1], [1, 2]]), (size, 2, 2))
    return jax.tree.map(jnp.asarray, dict(image=np.uint8(image), text=text, phrases=phrases)), colours, quarters


def trained(steps=120, **changes):
    """(the head "regions" with every box in place of the most confident, state) after steps on planted images."""
    config = tiny.config("loupe", **{**dict(regions=8, anchors=((0.5, 0.5),), pair_labels="exact", token_labels="sampled",
                                            token_quota=0, samples=8), **changes})
    config.model.image = dict(name="vit", width=32, depth=1, num_heads=2, mlp_dim=64, patch_size=CELL, pool="mean")
    config.model.text.update(dict(width=32, mlp_dim=32))
    config.model.embed_dim, config.model.inputs.image_size, config.optimizer.lr = 16, CELLS * CELL, 3e-3
    rng, objective = np.random.default_rng(0), job.objective_of(config)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), planted(rng)[0])
    tx, _ = optimizer.make(config.optimizer, shapes, total_steps=10, batch_size=ROWS, examples=10 * ROWS)
    state = step_lib.init_state(objective, tx, jax.random.key(0), planted(rng)[0])
    step = jax.jit(step_lib.make_step(objective, tx, tiny.weights(config)))
    for _ in range(steps):
        state, _ = jax.block_until_ready(step(state, planted(rng)[0]))
    config.objective.regions = CELLS ** 2
    return job.objective_of(config).heads["regions"], state


def aligned(head, state):
    """Share of the blocks whose own word is nearer to them than the caption's other one: a guess has a half."""
    batch, colours, quarters = planted(np.random.default_rng(1), 64)
    words = np.zeros((len(COLOURS), tiny.CONTEXT), np.int32)
    words[:, 0], words[:, 1] = np.arange(len(COLOURS)) + 3, tiny.EOT
    found = head(state.params, state.memory, {"image": batch["image"]})
    words = np.asarray(head(state.params, state.memory, {"text": jnp.asarray(words)})["text"])
    boxes, features = np.asarray(found["boxes"]), np.asarray(found["features"])
    right = []
    for i in range(len(boxes)):
        for j in range(2):
            top, left = (0.5 * n for n in divmod(quarters[i, j], 2))
            block = np.abs(boxes[i] - [left, top, left + 0.5, top + 0.5]).max(1).argmin()
            scores = words[colours[i]] @ features[i, block]
            right.append(scores[j] > scores[1 - j])
    return np.mean(right)


@pytest.mark.full
def test_blocks_are_aligned_with_their_words_through_the_towers_projections():
    assert aligned(*trained(project="shared")) > 0.9


@pytest.mark.full
def test_projections_of_their_own_only_sharpen_what_they_start_with():
    """No pair of another image enters the semantics-level loss, and its labels come from its own scores."""
    assert aligned(*trained(project="own")) < 0.8


@pytest.mark.full
def test_words_are_told_apart_by_the_contrast():
    assert aligned(*trained(project="shared", weights=dict(clip=0.0))) < 0.8
