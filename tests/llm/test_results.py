"""What measured rows say together, and their figure."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from occ_llm.figures import bench_figure, rate_distortion_figure
from occ_llm.results import (
    Row,
    at_equal_bytes,
    best_series,
    bytes_at_kl,
    change_at_bytes,
    change_of_bytes,
    kl_at_bytes,
    over_draws,
    paired_change,
)


def row(coordinates, file_bytes, kl, **changes):
    fields = dict(
        coordinates=coordinates,
        quantizer="scalar",
        feedback=True,
        linear_bits_per_weight=3.0,
        file_bytes=file_bytes,
        perplexity=20.0,
        kl_mean=kl,
        kl_se=0.01 * kl,
        seconds=1.0,
    )
    return Row(**(fields | changes))


CURVE = [row("identity", 100, 0.4), row("identity", 200, 0.1), row("identity", 300, 0.025)]


def test_bytes_at_kl_is_linear_in_log_kl():
    assert bytes_at_kl(CURVE, 0.1) == pytest.approx(200)
    assert bytes_at_kl(CURVE, 0.2) == pytest.approx(150)
    assert bytes_at_kl(CURVE[::-1], 0.05) == pytest.approx(250)


def test_nothing_is_extrapolated():
    assert bytes_at_kl(CURVE, 0.5) is None
    assert bytes_at_kl(CURVE, 0.01) is None
    assert bytes_at_kl([], 0.1) is None


def test_nothing_is_read_off_a_line_between_distant_files():
    far = [row("identity", 100, 0.41), row("identity", 200, 0.1), row("identity", 300, 0.05)]
    assert bytes_at_kl(far, 0.2) is None
    assert kl_at_bytes(far, 150) is None
    assert kl_at_bytes(far, 100) == pytest.approx(0.41), "a file is no neighbour, but itself"
    assert kl_at_bytes(far, 250) == pytest.approx(0.05 * 2**0.5)
    assert best_series([*far, row("klt", 100, 0.2), row("klt", 110, 0.1)]).startswith("KL divergence against")


def test_best_series_names_the_saving():
    larger = [row("hadamard", int(1.25 * r.file_bytes), r.kl_mean) for r in CURVE]
    assert best_series(CURVE + larger) == (
        "identity, scalar with feedback is smallest, 20.0 % below hadamard, scalar with feedback (KL 0.1)"
    )


def test_best_series_needs_something_to_compare():
    assert best_series(CURVE) == "KL divergence against file size"
    assert best_series([*CURVE, row("klt", 100, 9.0)]) == "KL divergence against file size"


def test_series_tells_quantizers_apart():
    assert row("dct", 1, 1.0, quantizer="trellis 8", feedback=False).series == "dct, trellis 8"


def test_figure_is_the_same_every_time_and_says_what_it_shows(tmp_path):
    rows = CURVE + [row("hadamard", int(1.1 * r.file_bytes), r.kl_mean) for r in CURVE]
    for name in ("a.svg", "b.svg"):
        rate_distortion_figure(rows, tmp_path / name, model="toy")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = " ".join(ET.parse(tmp_path / "a.svg").getroot().itertext())
    for words in ("toy: identity", "file size (MB", "nats per token", "hadamard, scalar with feedback"):
        assert words in text
    rate_distortion_figure(rows, tmp_path / "c.png", model="toy")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_figures_do_not_need_positive_errors(tmp_path):
    rate_distortion_figure([row("identity", 1000, 0.1, kl_se=0.0)], tmp_path / "a.svg", model="toy")
    assert (tmp_path / "a.svg").stat().st_size > 1000


def test_kl_at_bytes_is_linear_in_log_kl_and_never_extrapolates():
    assert kl_at_bytes(CURVE, 200) == pytest.approx(0.1)
    assert kl_at_bytes(CURVE, 150) == pytest.approx(0.2)
    assert kl_at_bytes(CURVE, 99) is None
    assert kl_at_bytes([], 100) is None


def test_curves_are_compared_at_the_sizes_of_the_best():
    other = [row("klt", 150, 0.4), row("klt", 250, 0.1)]
    equal = at_equal_bytes([*other, *CURVE])
    assert equal.anchor == "identity, scalar with feedback"
    assert equal.file_bytes == (100, 200, 300)
    assert equal.kl[equal.anchor] == pytest.approx((0.4, 0.1, 0.025))
    assert equal.kl["klt, scalar with feedback"][1] == pytest.approx(0.2)
    assert equal.kl["klt, scalar with feedback"][::2] == (None, None)
    with pytest.raises(ValueError, match="no rows"):
        at_equal_bytes([])


def test_the_figure_of_a_bench_has_a_panel_for_each_basis(tmp_path):
    rows = [*CURVE, row("klt", 150, 0.4), row("klt", 250, 0.1), row("klt", 150, 0.5, feedback=False)]
    bench_figure(rows, tmp_path / "bench.svg", model="toy")
    text = "".join(ET.parse(tmp_path / "bench.svg").getroot().itertext())
    for words in ("identity", "klt", "scalar, feedback", "file size (MB", "toy: lowest divergence at equal bytes"):
        assert words in text


def test_changes_are_paired_by_window():
    mine, others = (
        row("identity", 100, 1.0, kl_windows=(0.8, 1.8)),
        [row("identity", 100, 1.0, kl_windows=(0.9, 2.1)), row("identity", 100, 1.0, kl_windows=(1.1, 1.9))],
    )
    change, error = paired_change(mine, others)
    assert (change, error) == (pytest.approx(-0.2 / 1.5), pytest.approx(0, abs=1e-9))
    assert (
        paired_change(row("identity", 100, 1.0, kl_windows=(0.8,)), [row("identity", 100, 1.0, kl_windows=(0.9,))])
        is None
    )
    assert paired_change(mine, [row("identity", 100, 1.0, kl_windows=(0.9, 1.0, 1.1))]) is None
    assert paired_change(mine, []) is None


def test_the_mean_of_draws_has_an_error_of_its_own():
    """With no error over windows, what is left is that of a mean of three draws, as a share of what has changed."""
    draws = [row("hadamard", 100, kl, kl_windows=(kl, kl)) for kl in (0.9, 1.0, 1.1)]
    change, error = paired_change(row("learned", 100, 0.5, kl_windows=(0.5, 0.5)), draws)
    assert (change, error) == (pytest.approx(-0.5), pytest.approx(0.5 * 0.1 / 3**0.5))


def test_a_change_of_bytes_has_the_error_of_its_change_of_divergence():
    """The delta method on the same windows: bytes go with the logarithm of the divergence."""
    rng, windows = np.random.default_rng(0), 400
    text = rng.lognormal(0.0, 0.3, windows)
    curve = [
        row("identity", size, float(kl.mean()), kl_windows=tuple(kl))
        for size, kl in ((1000, 0.4 * text), (2000, 0.1 * text))
    ]
    own = 0.18 * text * (1 + 0.05 * rng.standard_normal(windows))
    mine = row("learned", 1500, float(own.mean()), kl_windows=tuple(own))
    change, error = change_of_bytes(mine, curve)
    at_kl = bytes_at_kl(curve, mine.kl_mean)
    assert change == pytest.approx(1500 / at_kl - 1)
    ratio = own / mine.kl_mean - text / text.mean()  # influence of each window on the logarithm of the quotient
    of_log = ratio.std(ddof=1) / windows**0.5
    assert error == pytest.approx(1500 / at_kl**2 * of_log * 1000 / np.log(4), rel=0.02)


def test_without_windows_a_change_of_bytes_has_no_error():
    assert change_of_bytes(row("learned", 180, 0.1), CURVE) == (pytest.approx(-0.1), None)
    assert change_of_bytes(row("learned", 180, 0.5), CURVE) is None


def test_a_curve_is_compared_at_the_size_of_a_file():
    curve = [row("identity", 100, 1.0, kl_windows=(0.8, 1.2)), row("identity", 200, 0.25, kl_windows=(0.2, 0.3))]
    mine = row("learned", 150, 0.45, kl_windows=(0.3, 0.6))
    change, error = change_at_bytes(mine, curve)  # the curve has 0.4 and 0.6 there
    assert change == pytest.approx(-0.1)
    assert error == pytest.approx(0.1)
    assert change_at_bytes(row("learned", 99, 1.0, kl_windows=(1.0, 1.0)), curve) is None
    assert change_at_bytes(mine, [row("identity", 100, 1.0, kl_windows=(1.0,)), *curve]) is None


def test_draws_of_random_coordinates_are_taken_together_at_each_rate():
    fine, coarse = dict(linear_bits_per_weight=3.01), dict(linear_bits_per_weight=2.0)
    rows = [
        row("hadamard", 100, 0.2, kl_windows=(0.1, 0.3), **fine),
        row("hadamard", 60, 0.9, **coarse),
        row("hadamard 12", 104, 0.4, kl_windows=(0.5, 0.3), **{**fine, "linear_bits_per_weight": 2.99}),
        row("learned (a 2)", 100, 0.1, **fine),
        row("hadamard", 100, 0.7, feedback=False, **fine),
    ]
    drawn, alone, learned, other = over_draws(rows)
    assert (drawn.row.coordinates, drawn.number, drawn.row.file_bytes) == ("hadamard", 2, 102)
    assert drawn.row.kl_mean == pytest.approx(0.3)
    assert drawn.row.kl_windows == pytest.approx((0.3, 0.3))
    assert drawn.spread == pytest.approx(0.2 / 2**0.5)
    assert (alone.row, alone.number, alone.spread) == (rows[1], 1, 0.0)
    assert learned.row == rows[3]
    assert other.row == rows[4]


def test_neighbouring_rates_of_one_basis_are_no_draws():
    rows = [row("identity", 100 + i, 0.2, linear_bits_per_weight=bits) for i, bits in enumerate((2.0, 2.01, 2.05, 2.1))]
    assert [drawn.row for drawn in over_draws(rows)] == rows
