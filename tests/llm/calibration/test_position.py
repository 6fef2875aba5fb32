"""A calibration that was interrupted goes on, and ends with the same statistics to the bit."""

import jax
import pytest
from occ_llm import scratch
from occ_llm.calibration import calibrate, load_or_calibrate
from occ_llm.calibration.position import Journal, Position, read_position
from occ_llm.errors import OccError
from occ_llm.scratch import unfinished

KEY = jax.random.key(3)
STEPS = {True: 5, False: 2}  # of two blocks: there, labels and back, or only there

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(scratch, "SAVE_SECONDS", 0.0)


def stopping(after: int, seen: list, error=KeyboardInterrupt):
    """Progress that stops when some steps are finished."""

    def progress(steps):
        for count, step in enumerate(steps):
            if count == after:
                raise error
            seen.append(step)
            yield step
        if after >= len(steps):
            raise error

    return progress


@pytest.mark.parametrize(
    ("fisher", "after"), [(fisher, after) for fisher, steps in STEPS.items() for after in range(1, steps + 1)]
)
@pytest.mark.usefixtures("always")
def test_an_interrupt_after_any_step(config, calibrated, tmp_path, fisher, after):
    weights, windows, _ = calibrated
    calibrate(config, weights, windows, key=KEY, fisher=fisher, path=tmp_path / "whole", batch_tokens=18)
    first, rest = [], []
    with pytest.raises(KeyboardInterrupt):
        load_or_calibrate(
            config, weights, windows, key=KEY, fisher=fisher, path=tmp_path / "a", batch_tokens=18,
            progress=stopping(after, first),
        )  # fmt: skip
    assert not (tmp_path / "a").exists()

    def progress(steps):
        for step in steps:
            rest.append(step)
            yield step

    load_or_calibrate(
        config, weights, windows, key=KEY, fisher=fisher, path=tmp_path / "a", batch_tokens=18, progress=progress
    )
    assert first + rest == list(range(STEPS[fisher]))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not list(unfinished().iterdir())


@pytest.mark.usefixtures("always")
def test_two_interrupts_in_a_row(config, calibrated, tmp_path):
    weights, windows, _ = calibrated
    calibrate(config, weights, windows, key=KEY, path=tmp_path / "whole")
    seen = []
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            calibrate(config, weights, windows, key=KEY, path=tmp_path / "a", progress=stopping(1, seen))
    calibrate(config, weights, windows, key=KEY, path=tmp_path / "a")
    assert seen == [0, 1, 2]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_short_calibration_keeps_no_position(config, calibrated, tmp_path):
    weights, windows, _ = calibrated
    with pytest.raises(KeyboardInterrupt):
        calibrate(config, weights, windows, key=KEY, path=tmp_path / "a", progress=stopping(3, []))
    (place,) = unfinished().iterdir()
    assert not list(place.glob("position*"))
    seen = []
    with pytest.raises(KeyboardInterrupt):
        calibrate(config, weights, windows, key=KEY, path=tmp_path / "a", progress=stopping(1, seen))
    assert seen == [0]


@pytest.mark.usefixtures("always")
def test_other_work_does_not_go_on_from_it(config, calibrated, tmp_path):
    weights, windows, _ = calibrated
    with pytest.raises(KeyboardInterrupt):
        calibrate(config, weights, windows, key=KEY, path=tmp_path / "a", progress=stopping(3, []))
    for other in ({"key": jax.random.key(4)}, {"fisher": False}, {"batch_tokens": 9}, {"windows": windows[:2]}):
        seen = []
        with pytest.raises(KeyboardInterrupt):
            calibrate(
                config, weights, **{"windows": windows, "key": KEY} | other, path=tmp_path / "a",
                progress=stopping(1, seen),
            )  # fmt: skip
        assert seen == [0], other


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("damage", ["cut", "empty", "statistics", "spool", "short spool"])
def test_what_cannot_be_read_is_begun_anew(config, calibrated, tmp_path, damage):
    weights, windows, _ = calibrated
    calibrate(config, weights, windows, key=KEY, path=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        calibrate(config, weights, windows, key=KEY, path=tmp_path / "a", progress=stopping(3, []))
    (place,) = unfinished().iterdir()
    assert read_position(place).steps == 3
    file = place / "position.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "short spool":
        (place / "spool.bin").write_bytes((place / "spool.bin").read_bytes()[:-1])
    else:
        next(place.glob(f"{damage}.*")).unlink()
    assert read_position(place).steps == 0
    calibrate(config, weights, windows, key=KEY, path=tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.usefixtures("always")
def test_a_calibration_that_cannot_end_is_not_kept(config, calibrated, tmp_path):
    weights, windows, _ = calibrated
    with pytest.raises(OccError, match="stop"):
        calibrate(
            config, weights, windows, key=KEY, path=tmp_path / "a", progress=stopping(3, [], OccError("stop"))
        )  # fmt: skip
    assert not list(unfinished().iterdir())


def test_without_a_directory_nothing_is_kept():
    journal = Journal()
    assert journal.begun.steps == Position().steps == 0
    with journal.spool() as spool:
        journal.save(1, [], spool)
    assert not list(unfinished().iterdir())
