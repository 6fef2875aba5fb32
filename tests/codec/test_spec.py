"""The registry: every transform and quantizer comes back; matrices stay orthonormal; lies are refused."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax import quantization, transforms
from occ_jax.codec import code_transform, from_spec, stored_transform, to_spec
from occ_jax.codec.axes import apply_axes, read_axes, undo_axes, write_axes
from occ_jax.codec.errors import FormatError
from occ_jax.codec.limits import MAX_DEPTH
from occ_jax.codec.spec import UnknownName
from occ_jax.codec.tensor import canonical_json
from occ_jax.entropy.varint import ByteReader
from occ_jax.quantization import Affine, DeadZone, Quantizer, Uniform, fit_affine
from occ_jax.transforms import (
    DCT,
    KLT,
    AlongAxis,
    Blockwise,
    Butterfly,
    Chain,
    Hadamard,
    Identity,
    Inverse,
    Kronecker,
    PlaneRotation,
    RealFFT,
    Rotation,
    Scaling,
    Transform,
    block_diagonal,
    hadamard,
    klt,
    num_pairs,
    random_hadamard,
    random_rotation,
)

KEY = jax.random.key(0)
N = 12
X = np.random.default_rng(0).standard_normal((5, N)).astype(np.float32)
TRANSFORMS: list[Transform] = [
    Identity(),
    DCT(),
    RealFFT(),
    hadamard(N),
    random_hadamard(N, key=KEY),
    random_rotation(N, key=KEY),
    klt(jnp.asarray(np.cov(np.random.default_rng(1).standard_normal((N, 40))), jnp.float32)),
    Inverse(DCT()),
    Blockwise(random_hadamard(4, key=KEY), 4),
    Chain((DCT(), random_hadamard(N, key=KEY), Blockwise(random_rotation(3, key=KEY), 3))),
    AlongAxis(RealFFT(), axis=-2),
    Butterfly(jnp.asarray(np.random.default_rng(2).uniform(-9, 9, (3, num_pairs(N))), jnp.float32), N),
    Kronecker((random_rotation(3, key=KEY), Blockwise(DCT(), 2)), (3, 4)),
    Scaling(jnp.linspace(-3, 2, N)),
    PlaneRotation(jnp.linspace(-9, 9, N // 2), N),
    block_diagonal(
        [Chain((random_rotation(6, key=jax.random.key(i)), Scaling(jnp.linspace(-i, 1, 6)))) for i in range(2)], 6
    ),
    Inverse(Chain((Blockwise(DCT(), 6), Inverse(random_hadamard(N, key=KEY))))),
]
QUANTIZERS: list[Quantizer] = [
    Uniform(jnp.array(0.25)),
    Uniform(jnp.linspace(0.1, 0.3, 5)[:, None]),
    DeadZone(jnp.array(0.25), jnp.array(1 / 3)),
    fit_affine(jnp.asarray(X), 3, group_size=5),
    fit_affine(jnp.asarray(X), 8, group_size="tensor", symmetric=True),
]


def nested_lists(depth: int) -> list:
    inner = []
    for _ in range(depth):
        inner = [inner]
    return inner


def names(items):
    return [f"{i}-{type(item).__name__}" for i, item in enumerate(items)]


def round_trip(item, **settings):
    spec, data = to_spec(item, **settings)
    import json

    reader = ByteReader(data, "example")
    again = from_spec(json.loads(canonical_json(spec)), reader)
    reader.finish()
    return again


def concrete(package, kind) -> set[type]:
    classes = {c for _, c in inspect.getmembers(package, inspect.isclass)}
    return {c for c in classes if issubclass(c, kind) and not inspect.isabstract(c)}


def test_the_battery_holds_every_class_there_is():
    assert {type(t) for t in TRANSFORMS} == concrete(transforms, Transform)
    assert {type(q) for q in QUANTIZERS} == concrete(quantization, Quantizer)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=names(TRANSFORMS))
def test_transforms_come_back(transform):
    again = round_trip(transform, matrix_bits=12)
    assert type(again) is type(transform)
    np.testing.assert_allclose(again.forward(jnp.asarray(X)), transform.forward(jnp.asarray(X)), atol=2e-3)
    np.testing.assert_allclose(again.inverse(again.forward(jnp.asarray(X))), X, atol=2e-5)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=names(TRANSFORMS))
def test_what_is_stored_is_stable(transform):
    """Storing what was stored changes nothing: encoder and decoder agree on the coordinates."""
    stored = stored_transform(transform)
    np.testing.assert_allclose(
        round_trip(stored).forward(jnp.asarray(X)),
        stored.forward(jnp.asarray(X)),
        atol=0.02 if has_matrix(stored) else 1e-6,
    )


@pytest.mark.parametrize("transform", TRANSFORMS, ids=names(TRANSFORMS))
def test_the_plain_decoder_makes_the_same_matrix(transform, plain_decoder):
    if isinstance(transform, AlongAxis):
        return
    spec, data = to_spec(transform)
    matrix = plain_decoder.transform_matrix(spec, N, plain_decoder.Bytes(data))
    np.testing.assert_allclose(X @ matrix.T, stored_transform(transform).forward(jnp.asarray(X)), atol=2e-5)


def has_matrix(transform) -> bool:
    return any(leaf.ndim >= 2 for leaf in jax.tree.leaves(transform))


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=names(QUANTIZERS))
def test_quantizers_come_back_exactly(quantizer):
    again = round_trip(quantizer)
    assert type(again) is type(quantizer)
    for stored, given in zip(jax.tree.leaves(again), jax.tree.leaves(quantizer), strict=True):
        assert stored.dtype == given.dtype
        np.testing.assert_array_equal(stored, given)
    np.testing.assert_array_equal(again.quantize(jnp.asarray(X)), quantizer.quantize(jnp.asarray(X)))


def test_side_information_has_the_promised_size():
    assert to_spec(DCT())[1] == b""
    assert to_spec(hadamard(576))[1] == b""
    assert len(to_spec(random_hadamard(577, key=KEY))[1]) == 73


@pytest.mark.parametrize("bits", [3, 5, 8])
@pytest.mark.parametrize("n", [1, 2, 7, 64, 150])
def test_stored_rotations_are_orthonormal_and_near(n, bits):
    given = random_rotation(n, key=KEY)
    stored = stored_transform(given, matrix_bits=bits)
    assert isinstance(stored, Rotation)
    matrix = np.asarray(stored.matrix, np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=3e-6)
    assert np.abs(matrix - np.asarray(given.matrix)).max() <= 1.5 * 2.0**-bits


def test_matrices_cost_their_entropy():
    """A Gaussian entry on a grid of 2**-bits standard deviations costs bits + 1/2 log2(2 pi e)."""
    n, bits = 256, 5
    expected = bits + 0.5 * np.log2(2 * np.pi * np.e)
    got = 8 * len(to_spec(random_rotation(n, key=KEY), matrix_bits=bits)[1]) / n**2
    assert expected - 0.02 <= got <= expected + 0.08


def test_klt_keeps_its_order_of_energies():
    given = klt(jnp.diag(jnp.asarray([1.0, 9.0, 4.0])))
    stored = stored_transform(given)
    assert isinstance(stored, KLT)
    np.testing.assert_array_equal(stored.eigenvalues, given.eigenvalues)
    np.testing.assert_allclose(jnp.abs(stored.forward(jnp.eye(3))), jnp.abs(given.forward(jnp.eye(3))), atol=0.03)


def test_axes_follow_the_equation():
    left, right = random_rotation(5, key=KEY), random_rotation(N, key=KEY)
    y = apply_axes(jnp.asarray(X), left, right)
    np.testing.assert_allclose(y, np.asarray(left.matrix) @ X @ np.asarray(right.matrix).T, atol=1e-5)
    np.testing.assert_allclose(undo_axes(y, left, right), X, atol=1e-5)
    fields, data = write_axes(left, right, 14)
    again = read_axes(fields, data, (5, N), "a tensor")
    np.testing.assert_allclose(undo_axes(y, *again), X, atol=2e-3)


@pytest.mark.parametrize(
    ("spec", "data", "cause"),
    [
        ({"left": {"name": "wavelet"}}, b"", "newer occ_jax .*wavelet"),
        ({"left": {"name": "uniform"}}, b"\0\0\0\x80\x3f", "not a transform"),
        (
            {"left": {"name": "chain", "of": [{"name": "along_axis", "axis": 0, "of": {"name": "dct"}}]}},
            b"",
            "one axis",
        ),
        ({"left": {"name": "dct"}}, b"x", "left over"),
        ({"left": {"name": "hadamard", "size": 4, "signs": True}}, b"", "announced"),
        ({"left": {"name": "hadamard", "size": 4, "signs": False}}, b"", "size 4"),
        ({"left": {"name": "hadamard", "size": 2**60, "signs": False}}, b"", "size"),
        ({"left": {"name": "hadamard", "size": True}}, b"", "size"),
        ({"left": {"name": "rotation", "size": 2**13, "exponent": 3}}, b"12", "size"),
        ({"left": {"name": "rotation", "size": 5, "exponent": 99}}, b"12", "exponent"),
        ({"left": {"name": "blockwise", "of": {"name": "dct"}, "size": 0}}, b"", "size"),
        ({"left": {"name": "blockwise", "of": {"name": "dct"}, "size": 3}}, b"", "divide"),
        ({"left": {"name": "butterfly", "size": 2**20, "sweeps": 1, "exponent": 8}}, b"\xff\0", "size"),
        ({"left": {"name": "butterfly", "size": 5, "sweeps": 9, "exponent": 8}}, b"\xff\0", "sweeps"),
        ({"left": {"name": "butterfly", "size": 5, "sweeps": 2, "exponent": 8}}, b"\xff\0", "bytes"),
        ({"left": {"name": "butterfly", "size": 6, "sweeps": 1, "exponent": 8}}, b"\xff\0", "size 6"),
        ({"left": {"name": "scaling", "size": 6, "exponent": 4}}, b"\xff\0", "6 entries"),
        ({"left": {"name": "scaling", "size": 5, "exponent": 15}}, b"\xff\0", "exponent"),
        ({"left": {"name": "plane_rotation", "size": 6, "exponent": 4}}, b"\xff\0", "size 6"),
        ({"left": {"name": "plane_rotation", "size": 2**17, "exponent": 4}}, b"\xff\0", "size"),
        ({"left": {"name": "block_diagonal", "of": [{"name": "dct"}], "size": 4}}, b"", "length 5"),
        ({"left": {"name": "block_diagonal", "of": [], "size": 5}}, b"", "one kind"),
        ({"left": {"name": "block_diagonal", "of": [{"name": "dct"}, {"name": "real_fft"}], "size": 5}}, b"", "kind"),
        ({"left": {"name": "kronecker", "of": [{"name": "dct"}], "sizes": [4]}}, b"", "multiply"),
        ({"left": {"name": "kronecker", "of": [{"name": "dct"}], "sizes": [5, 1]}}, b"", "one positive size"),
        ({"left": {"name": "kronecker", "of": [{"name": "dct"}], "sizes": [True]}}, b"", "positive integers"),
        ({"left": {"name": "chain", "of": {"name": "dct"}}}, b"", "chain"),
        ({"left": {"name": "chain", "of": [{"name": "dct"}] * 65}}, b"", "64"),
        ({"left": {"name": "chain", "of": [{"name": "scaling", "size": 2**24, "exponent": 6}] * 17}}, b"", "entries"),
        ({"left": {"name": "chain", "of": [{"name": "scaling", "size": 2**24, "of": []}] * 17}}, b"", "entries"),
        ({"left": {"name": "inverse", "of": {"name": "uniform"}}}, b"\0\0\0\x80\x3f", "part of a transform"),
        ({"left": {"name": "chain", "of": [{"name": "uniform"}]}}, b"\0\0\0\x80\x3f", "part of a transform"),
        ({"left": {"name": "dct", "of": nested_lists(2000)}}, b"", "damaged"),
        ({"left": {"name": "inverse"}}, b"", "object"),
        ({"left": "dct"}, b"", "object"),
        ({"right": {"name": ["dct"]}}, b"", "object"),
    ],
)
def test_lies_are_refused(spec, data, cause):
    with pytest.raises(FormatError, match=cause):
        read_axes(spec, data, (5, 7), "tensor 'x'")


def test_nesting_has_a_limit():
    spec = {"name": "dct"}
    for _ in range(MAX_DEPTH + 2):
        spec = {"name": "inverse", "of": spec}
    with pytest.raises(ValueError, match="nested too deeply"):
        from_spec(spec, ByteReader(b"", "x"))


@pytest.mark.parametrize(
    ("transform", "cause"),
    [
        (Chain((Identity(),) * 65), "65 transforms"),
        (block_diagonal([Scaling(jnp.zeros(2))] * 65, 2), "65 transforms"),
        (Butterfly(jnp.zeros((9, num_pairs(4))), 4), "butterfly"),
        (Butterfly(jnp.zeros((1, num_pairs(2**16 + 2))), 2**16 + 2), "butterfly"),
        (Chain((Scaling(jnp.zeros(20)), Rotation(jnp.eye(9)))), "101 entries"),
    ],
)
def test_what_no_reader_takes_is_not_written(transform, cause, monkeypatch):
    monkeypatch.setattr("occ_jax.codec.spec.MAX_ENTRIES", 100)
    with pytest.raises(ValueError, match=cause):
        code_transform(transform)


def test_unknown_names_and_classes():
    with pytest.raises(UnknownName, match="wavelet"):
        from_spec({"name": "wavelet"}, ByteReader(b"", "x"))

    class Mirror(Transform):
        @property
        def is_orthonormal(self):
            return True

        def forward(self, x):
            return x[..., ::-1]

        def inverse(self, y):
            return y[..., ::-1]

    with pytest.raises(ValueError, match="Mirror has no name"):
        to_spec(Mirror())


def test_a_matrix_that_is_no_rotation_is_not_written():
    with pytest.raises(ValueError, match="not orthogonal"):
        to_spec(Rotation(2 * jnp.eye(3)))
    with pytest.raises(ValueError, match="matrix_bits"):
        to_spec(Rotation(jnp.eye(3)), matrix_bits=1)


def test_a_matrix_that_is_no_rotation_is_not_read():
    spec, data = to_spec(Rotation(jnp.eye(3)))
    with pytest.raises(ValueError, match="orthogonal"):
        from_spec({**spec, "exponent": spec["exponent"] - 1}, ByteReader(data, "x"))
    for cut in range(0, len(data), 5):
        with pytest.raises(ValueError, match=r"malformed|lanes"):
            from_spec(spec, ByteReader(data[:cut], "x"))


def test_steps_must_be_positive():
    spec, data = to_spec(Uniform(jnp.array(0.5)))
    broken = data[:-4] + np.float32(-0.5).tobytes()
    with pytest.raises(ValueError, match="positive"):
        from_spec(spec, ByteReader(broken, "x"))


def test_registered_side_information_is_integers_only():
    """Signs are the only leaves of a Hadamard, and Affine keeps float16 scales: nothing else is stored by accident."""
    assert [leaf.dtype for leaf in jax.tree.leaves(random_hadamard(4, key=KEY))] == [jnp.int8]
    assert isinstance(round_trip(random_hadamard(4, key=KEY)), Hadamard)
    affine = round_trip(QUANTIZERS[3])
    assert isinstance(affine, Affine)
    assert affine.scale.dtype == jnp.float16
