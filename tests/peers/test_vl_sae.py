"""Our sparse autoencoder beside a torch one written from the published description, on the same weights: outputs and gradients."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcd_jax.methods.vl_sae import sae as sae_lib
from mcd_jax.methods.vl_sae import sparse, vl_sae_format

torch = pytest.importorskip("torch")
D, H, K, B = 32, 256, 16, 24


class Twin(torch.nn.Module):
    """Codes 2 - ||n(x) - n(w)|| by torch.cdist, the k largest by topk, a linear decoder for each side; released parameter names."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Parameter(torch.empty(H, D))
        torch.nn.init.kaiming_uniform_(self.encoder, a=math.sqrt(5))
        self.vision_decoder, self.text_decoder = torch.nn.Linear(H, D), torch.nn.Linear(H, D)

    def codes(self, x):
        unit = torch.nn.functional.normalize
        a = 2 - torch.cdist(unit(x, dim=1), unit(self.encoder, dim=1))
        values, places = torch.topk(a, K, dim=1)
        return torch.zeros_like(a).scatter(1, places, values)

    def forward(self, image, text):
        codes = self.codes(image), self.codes(text)
        return self.vision_decoder(codes[0]), self.text_decoder(codes[1]), *codes


@pytest.fixture(scope="module")
def both():
    torch.manual_seed(0)
    twin = Twin()
    arrays = {name: x.detach().numpy() for name, x in twin.state_dict().items()}
    kind, params = vl_sae_format.to_ours(arrays)
    assert kind == "VL_SAE"
    return twin, params["sae"], sae_lib.make(D, H, K)


def test_outputs(both):
    twin, params, sae = both
    rng = np.random.default_rng(0)
    image, text = (rng.normal(size=(B, D)).astype(np.float32) * 3 for _ in range(2))
    with torch.no_grad():
        theirs = [x.numpy() for x in twin(torch.tensor(image), torch.tensor(text))]
    codes = [sae.encode(params, kind, jnp.asarray(x)) for kind, x in (("image", image), ("text", text))]
    ours = [*(sae.decode(params, kind, h) for kind, h in zip(("image", "text"), codes)), *codes]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_loss_and_gradients(both):
    twin, params, sae = both
    rng = np.random.default_rng(1)
    image, text = (rng.normal(size=(B, D)).astype(np.float32) for _ in range(2))
    twin.zero_grad()
    found = twin(torch.tensor(image), torch.tensor(text))
    mse = torch.nn.functional.mse_loss
    theirs = mse(found[0], torch.tensor(image)) + mse(found[1], torch.tensor(text))
    theirs.backward()

    def loss(params):
        rows = {"image": jnp.asarray(image), "text": jnp.asarray(text)}
        return sum(sparse.reconstruction(sae.decode(params, kind, sae.encode(params, kind, x)), x) for kind, x in rows.items())

    value, grads = jax.value_and_grad(loss)(jax.tree.map(jnp.asarray, params))
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-6)
    _, named = vl_sae_format.to_theirs({"sae": jax.device_get(grads)})
    for name, parameter in twin.named_parameters():
        np.testing.assert_allclose(named[name], parameter.grad.numpy(), atol=1e-6, err_msg=name)
