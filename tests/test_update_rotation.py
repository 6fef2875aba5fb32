"""The pages about rotation and alignment say what the record of the bench says."""

import json
import shutil
from pathlib import Path

import pytest
import update_rotation as script

ROOT = Path(__file__).resolve().parent.parent
WORDS = script.PAGES["docs/theory/rotation_vs_alignment.md"]


def row(coordinates: str, quantizer: str, bits: float, windows: list[float]) -> dict:
    kl = sum(windows) / len(windows)
    return {
        "coordinates": coordinates,
        "quantizer": quantizer,
        "feedback": True,
        "linear_bits_per_weight": bits,
        "file_bytes": int(1e7 * bits),
        "perplexity": 20 * (1 + kl),
        "kl_mean": kl,
        "kl_se": 0.01,
        "seconds": 60.0,
        "kl_windows": windows,
    }


@pytest.fixture
def record() -> dict:
    """Learned coordinates halve the divergence of integers, and save a tenth of the bytes of coded files."""
    name = "integers, groups of 128"
    integers = [
        row("hadamard", name, 3.16, [0.3, 0.5]),
        row("hadamard 1", name, 3.16, [0.5, 0.7]),
        row("learned (here)", name, 3.16, [0.2, 0.3]),
        row("identity", name, 3.16, [0.6, 0.6]),
        row("identity", name, 2.16, [4.0, 4.0]),
    ]
    coded = [
        row("identity", "scalar", 2.0, [0.4, 0.4]),
        row("identity", "scalar", 3.0, [0.1, 0.1]),
        row("learned (here)", "scalar", 2.25, [0.2, 0.2]),
        row("identity", "trellis 8", 2.0, [0.4, 0.4]),
    ]
    return {"rows": integers + coded}


def test_the_pages_say_what_the_record_says():
    script.main(check=True)


def test_integers_are_compared_with_the_mean_over_draws(record):
    table = script.render(record, WORDS)
    # The errors over windows are a tenth and a fifth; that of the mean over draws is a fifth of what is compared with it.
    assert "| 3.160 | learned (here) | 31,600,000 | 25.00 | 0.2500 ± 0.0100 | -50.0% ± 14.1% |  |" in table
    assert "| hadamard, mean of 2 draws (KL spread 0.1414) | 31,600,000 | 30.00 | 0.5000 ± 0.0100 |  |" in table
    assert "| identity | 31,600,000 | 32.00 | 0.6000 ± 0.0100 | +20.0% ± 31.2% |  |" in table
    assert "| 2.160 | identity | 21,600,000 | 100.00 | 4.0000 ± 0.0100 |  |" in table, "nothing to compare it with"


def test_integers_are_compared_at_the_size_of_each_file(record):
    """A tenth of the way to the next width, where the divergence is a quarter, is worth a factor of 4 ** 0.1."""
    name = "integers, groups of 128"
    larger = row("learned (large)", name, 3.16, [0.2, 0.3]) | {"file_bytes": 32_600_000}
    finer = row("hadamard", name, 4.16, [0.125, 0.125])
    table = script.render({"rows": [*record["rows"], larger, finer]}, WORDS)
    assert "| learned (large) | 32,600,000 | 25.00 | 0.2500 ± 0.0100 | -50.0% ± 14.1% | -42.6% |" in table
    assert "| learned (here) | 31,600,000 | 25.00 | 0.2500 ± 0.0100 | -50.0% ± 14.1% | -50.0% |" in table


def test_coded_files_are_compared_by_bytes_at_equal_divergence(record):
    table = script.render(record, WORDS)
    # At 2.25 bits the curve of the original coordinates has 0.4 / 2 ** 0.5.
    cells = "| learned (here) | 2.250 | 22,500,000 | 24.00 | 0.2000 ± 0.0100 | -10.0% ± 0.0% (identity) | -29.3% ± 0.0% (identity) |"
    assert cells in table
    assert "trellis" not in table, "one basis is no comparison"


def test_draws_of_random_coordinates_are_one_curve(record):
    drawn = [row("hadamard", "scalar", 2.24, [0.3, 0.3]), row("hadamard 1", "scalar", 2.26, [0.1, 0.1])]
    table = script.render({"rows": [*record["rows"], *drawn]}, WORDS)
    cells = "| hadamard, mean of 2 draws (KL spread 0.1414) | 2.250 | 22,500,000 | 24.00 | 0.2000 ± 0.0100 | -10.0% ± 0.0% (identity) |"
    assert cells in table
    assert "hadamard 1" not in table


def test_a_changed_record_is_noticed_and_taken_over(record, tmp_path):
    for name in script.PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / script.RECORD).parent.mkdir(parents=True)
    (tmp_path / script.RECORD).write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="does not say"):
        script.main(check=True, root=tmp_path)
    script.main(root=tmp_path)
    script.main(check=True, root=tmp_path)
    assert all("-10.0% ± 0.0% (identity)" in (tmp_path / name).read_text() for name in script.PAGES)


def test_without_rows_the_pages_say_so():
    assert script.render({"rows": []}, WORDS) == WORDS["none"]
