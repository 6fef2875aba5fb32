"""Blocks in sequence where learned transforms are stored with matrices."""

import numpy as np
import pytest
from occ_llm.calibration import sandwich
from occ_llm.compression.factors import Factors
from occ_llm.compression.network import prepare_network
from occ_llm.compression.sequential import _factors
from occ_llm.roles import linear_name
from occ_llm.stored_coordinates import save_coordinates

from occ_jax.transforms import Identity, Inverse

PLACES = ("residual", "attention-inputs", "o-inputs", "mlp-inputs", "hidden")


@pytest.mark.parametrize("name", ["learned", "klt-inputs"])
def test_inputs_that_did_not_change_keep_their_cost(
    name, toy, toy_statistics, drawn_coordinates, tmp_path, monkeypatch
):
    """The cost of errors in the stored coordinates, from moments of what the network itself sees."""
    file = tmp_path / "t.safetensors"
    digest = toy_statistics.fingerprint.model
    save_coordinates(
        file, toy.config, drawn_coordinates(toy.config, PLACES), model="toy", model_digest=digest, about={}
    )
    transforms = file if name == "learned" else None
    network = prepare_network(toy.config, toy.weights, toy_statistics, coordinates=name, transforms=transforms)
    names = [linear_name(1, kind) for kind in ("v", "o", "up", "down")]
    assert not any(isinstance(network.stored_transform(n), Identity) for n in names)
    seen = {n: sandwich(Inverse(network.stored_transform(n)), network.input_moment(n)) for n in names}
    found = {}
    monkeypatch.setattr(Factors, "of", lambda _, n, moment: found.setdefault(n, moment()))
    _factors(tmp_path, network, lambda: seen, damping=0.01)
    for n in names:
        expected = network.sensitivity(n).hessian
        np.testing.assert_allclose(found[n], expected, rtol=0, atol=2e-3 * np.abs(expected).max())
