"""Statistics on disk, and when they may be used again."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest
from occ_llm.calibration import calibrate, fingerprint, load_or_calibrate, load_statistics, save_statistics
from occ_llm.calibration.storage import statistics_writer
from occ_llm.checkpoints.atomic import atomic_file
from occ_llm.errors import OccError
from occ_llm.folding import fold_norms
from safetensors import safe_open
from safetensors.numpy import save_file

KEY = jax.random.key(3)


def never(steps):
    raise AssertionError("calibrated again")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "statistics.safetensors"


@pytest.mark.parametrize("fisher", [True, False])
def test_the_file_holds_what_memory_would(config, calibrated, path, fisher):
    weights, windows, _ = calibrated
    memory = calibrate(config, weights, windows, key=KEY, fisher=fisher)
    disk = calibrate(config, weights, windows, key=KEY, fisher=fisher, path=path)
    assert disk.config == config
    assert (disk.num_tokens, disk.fingerprint) == (memory.num_tokens, memory.fingerprint)
    assert disk.has_fisher == fisher
    assert len(disk.tensors) == len(memory.tensors)
    for name, value in memory.tensors.items():
        np.testing.assert_array_equal(disk.tensors[name], value)


def test_round_trip(calibrated, path):
    statistics = calibrated[2]
    save_statistics(path, statistics)
    found = load_statistics(path)
    assert found.fingerprint == statistics.fingerprint
    for name, value in statistics.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], value)
    with pytest.raises(OccError, match="already exists"):
        save_statistics(path, statistics)
    save_statistics(path, found, force=True)  # a file may be read while it is replaced
    np.testing.assert_array_equal(load_statistics(path).token_counts, statistics.token_counts)


def test_the_file_is_plain_safetensors(calibrated, path):
    save_statistics(path, calibrated[2])
    with safe_open(path, framework="np") as file:
        assert json.loads(file.metadata()["config"])["hidden_size"] == 12
        np.testing.assert_array_equal(file.get_tensor("lm_head.hessian"), calibrated[2].hessian("lm_head.weight"))


def test_two_runs_write_the_same_bytes(config, calibrated, tmp_path):
    weights, windows, _ = calibrated
    for name in "ab":
        calibrate(config, weights, windows, key=KEY, path=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_nothing_beside_the_output(config, calibrated, path, error):
    def stop(steps):
        for i, step in enumerate(steps):
            if i == 3:
                raise error
            yield step

    weights, windows, _ = calibrated
    with pytest.raises(error):
        calibrate(config, weights, windows, key=KEY, path=path, progress=stop)
    assert not list(path.parent.iterdir())


def test_the_writer_refuses_what_does_not_belong(config, calibrated, path):
    @contextlib.contextmanager
    def writer():
        with atomic_file(path) as aside, statistics_writer(aside, **about) as write:
            yield write

    about = {"config": config, "num_tokens": 1, "fingerprint": calibrated[2].fingerprint}
    about |= {"fisher": False, "dtype": np.dtype(np.float32)}
    with pytest.raises(ValueError, match="not a statistic"), writer() as write:
        write("model.layers.0.o_in.hessian", np.zeros((3, 3), np.float32))
    with pytest.raises(ValueError, match="not a statistic"), writer() as write:
        write("lm_head.hessian", np.zeros((12, 12)))
    with pytest.raises(ValueError, match="never written"), writer() as write:
        write("lm_head.hessian", np.zeros((12, 12), np.float32))
    assert not path.exists()


def test_files_that_cannot_be_used(calibrated, path, tmp_path):
    with pytest.raises(OccError, match="is a directory"):
        load_statistics(tmp_path)
    with pytest.raises(OccError, match="no such statistics file"):
        load_statistics(path)
    save_statistics(path, calibrated[2])
    content = path.read_bytes()
    for damaged in (b"", content[:100], content[: len(content) // 2], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(OccError, match="damaged"):
            load_statistics(path)
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(OccError, match="holds no calibration statistics"):
        load_statistics(path)
    path.write_bytes(content.replace(b'"version":"2"', b'"version":"9"'))
    with pytest.raises(OccError, match="format version 9"):
        load_statistics(path)
    path.write_bytes(content.replace(b"model.layers.1.o_in.hessian", b"model.layers.7.o_in.hessian"))
    with pytest.raises(OccError, match="are missing"):
        load_statistics(path)


def test_a_file_that_fits_is_used_again(config, calibrated, path):
    weights, windows, statistics = calibrated
    first = load_or_calibrate(config, weights, windows, key=KEY, path=path)
    again = load_or_calibrate(config, weights, windows, key=KEY, path=path, progress=never)
    assert first.fingerprint == again.fingerprint == statistics.fingerprint
    folded = fold_norms(config, weights)
    load_or_calibrate(config, folded, windows, key=KEY, path=path, progress=never)


@pytest.mark.parametrize("what", ["model", "text", "settings"])
def test_a_file_that_does_not_fit_is_refused_and_kept(config, calibrated, path, what):
    weights, windows, statistics = calibrated
    save_statistics(path, statistics)
    before = path.read_bytes()
    key = KEY
    if what == "model":
        weights = dict(weights)
        name = "model.layers.1.mlp.up_proj.weight"
        weights[name] = weights[name] + np.eye(*weights[name].shape, dtype=np.float32) * 1e-3
    elif what == "text":
        windows = windows[:, :-1]
    else:
        key = jax.random.key(4)
    sentence = {"model": "another model;", "text": r"another text .*;", "settings": "other calibration settings;"}[what]
    with pytest.raises(OccError, match=f"{path}: these statistics belong to {sentence}"):
        load_or_calibrate(config, weights, windows, key=key, path=path, progress=never)
    assert path.read_bytes() == before


def test_all_differences_are_named(config, calibrated):
    weights, windows, statistics = calibrated
    other = fingerprint(dataclasses.replace(config, rope_theta=5.0), weights, windows[:2], key=KEY)
    with pytest.raises(OccError, match="another model and another text"):
        other.require(statistics.fingerprint, "a.safetensors")


def test_the_key_does_not_matter_without_labels(config, calibrated):
    weights, windows, _ = calibrated
    one, two = (fingerprint(config, weights, windows, key=jax.random.key(i), fisher=False) for i in (1, 2))
    assert one == two
    assert one.digest == two.digest
    assert one.differences(fingerprint(config, weights, windows, key=KEY)) == ("settings",)


def test_the_cache_finds_by_fingerprint_and_replaces_damage(config, calibrated, tmp_path, monkeypatch):
    weights, windows, _ = calibrated
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_or_calibrate(config, weights, windows, key=KEY, fisher=False)
    load_or_calibrate(config, weights, windows, key=KEY, fisher=False, progress=never)
    load_or_calibrate(config, weights, windows[:2], key=KEY, fisher=False)
    files = sorted((tmp_path / "occ_jax" / "calibration").iterdir())
    assert len(files) == 2
    files[0].write_bytes(b"damaged")
    files[1].write_bytes(b"damaged")
    again = load_or_calibrate(config, weights, windows, key=KEY, fisher=False)
    assert np.isfinite(again.hessian("lm_head.weight")).all()
    load_or_calibrate(config, weights, windows, key=KEY, fisher=False, cache_dir=files[0].parent, progress=never)
