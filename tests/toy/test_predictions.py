"""Predictions can come out either way: made-up measurements decide them as they should."""

from occ_toy.coding import RatePoint
from occ_toy.experiment import Cell, Protocol, Regime, Results
from occ_toy.invariance import Invariance
from occ_toy.measures import Distribution, Sensitivity
from occ_toy.predictions import outcomes


def regime(size, *, kurtosis=3.0, integer_error=None, basis_bytes=0):
    distribution = Distribution(kurtosis=kurtosis, linf_rms=3.0, effective_dimension=0.5)
    points = tuple(RatePoint(bytes_per_function=size, error=error) for error in (1e-3, 0.5))
    return Regime(
        distribution=distribution, energies=(1.0,), basis_bytes=basis_bytes, points=points, integer_error=integer_error
    )


def cell(
    source,
    representation,
    *,
    original,
    rotated,
    klt=None,
    learned=None,
    hessian=None,
    kurtosis=20.0,
    integers=(1.0, 0.5),
):
    regimes = {
        "original": regime(original, kurtosis=kurtosis, integer_error=integers[0]),
        "rotated": regime(rotated, integer_error=integers[1]),
    }
    regimes |= {"klt": regime(klt)} if klt else {}
    regimes |= {"learned": regime(learned)} if learned else {}
    regimes |= {"hessian": regime(hessian, basis_bytes=10_000)} if hessian else {}
    return Cell(
        source=source,
        representation=representation,
        is_network=klt is None,
        seed=0,
        size=64,
        fit_error=1e-4,
        is_accurate=True,
        sensitivity=Sensitivity(spectrum=(1.0,), effective_dimension=0.05, axis_alignment=0.5),
        regimes=regimes,
    )


def decide(cells, *, bound=None, rescaled=((100.0, 130.0), (100.0, 101.0)), change=1e-6):
    invariance = Invariance(
        name="MLP ReLU: rescale",
        is_shared=True,
        function_change=change,
        uniform_bytes=rescaled[0],
        sensitive_bytes=rescaled[1],
    )
    results = Results(protocol=Protocol(), cells=tuple(cells), invariances=(invariance,), ar1_bound_bytes=bound)
    return {outcome.name: outcome.holds for outcome in outcomes(results)}


AS_EXPECTED = [
    cell("convolution", "fourier", original=20.0, rotated=60.0, klt=19.0, learned=18.0),
    cell("convolution", "dct", original=70.0, rotated=90.0, klt=19.5),
    cell("ar1", "dct", original=62.0, rotated=90.0, klt=61.0, learned=61.5),
    cell("convolution", "tanh", original=200.0, rotated=220.0, hessian=150.0),
]


def test_everything_can_hold():
    # 0.3 bit per sample of 256 above the bound are 9.6 bytes.
    assert set(decide(AS_EXPECTED, bound=61.0 - 9.6).values()) == {True}


def test_everything_can_be_refuted():
    cells = [
        cell("convolution", "fourier", original=25.0, rotated=20.0, klt=26.0, learned=26.0, integers=(1.0, 2.0)),
        cell("convolution", "dct", original=24.0, rotated=20.0, klt=36.0, integers=(1.0, 2.0)),
        cell("ar1", "dct", original=80.0, rotated=70.0, klt=61.0, integers=(1.0, 2.0)),
        cell("convolution", "tanh", original=20.0, rotated=22.0, hessian=25.0),
    ]
    decided = decide(cells, bound=60.0, rescaled=((100.0, 101.0), (100.0, 130.0)))
    assert {name for name, holds in decided.items() if holds} == {"P2", "P8"}  # these are not about bytes


def test_what_was_not_measured_stays_open():
    decided = decide([], rescaled=((None, None), (None, None)))
    assert set(decided.values()) == {None}
    nothing = Results(protocol=Protocol(), cells=(), invariances=(), ar1_bound_bytes=None)
    assert {outcome.holds for outcome in outcomes(nothing)} == {None}
