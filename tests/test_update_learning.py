"""The page of what was trained says what its record says, and takes over what files of transforms hold."""

import pytest
import update_learning as script
from occ_llm.stored_coordinates import KIND

from occ_jax.learned import save_transforms
from occ_jax.transforms import hadamard


def training(**settings) -> dict:
    chosen = {"objective": "int", "bits": 2.0, "clip": True, "placements": ["residual", "hidden"], "init": "learned"}
    measured = {
        place: {"bits": 2.1, "distortion": d} for place, d in (("original", 3.0), ("start", 2.0), ("coded", 1.5))
    }
    log = {"bits": [2.1, 2.1], "distortion": [2.0, 1.5], "orthogonality": [1e-7, 3e-7]}
    return {
        "model": "small",
        "settings": chosen | settings,
        "parameters": {"residual": 6},
        "measured": measured,
        "control": None,
        "seconds_per_step": 90.0,
        "pass_seconds": 60.0,
        "transforms": "before.safetensors",
        "log": {"learned": log},
    }


def test_the_page_says_what_the_record_says():
    with pytest.raises(SystemExit) as exit_:
        script.main(check=True)
    assert exit_.value.code == 0


def test_a_training_stands_with_its_command_its_outcome_and_its_time():
    page = script.page({"mine": training()})
    command = "occ learn --objective int --bits 2.0 --clip --placements residual hidden --init learned"
    assert f"`{command} --transforms before.safetensors`" in page
    line = "| mine | divergence, second order | 3.0000 | 2.0000 | 1.5000 |  |  | 2 | 3 | 1.50 | 3.0e-07 |"
    assert line in page


def test_the_control_stands_beside_what_was_learned():
    control = {"measured": training()["measured"]}
    assert "| 1.5000 | 2.0000 | 1.5000 | 2 |" in script.page({"mine": training() | {"control": control}})


def test_end_to_end_both_measures_are_shown_with_the_windows_that_they_are_of():
    page = script.page({"old": training(objective="kl-coded"), "new": training(objective="kl", batch=1)})
    assert "| old | bits per weight | 2.1000 |" in page
    assert "| old | divergence, training windows | 3.0000 |" in page
    assert "| new | divergence, unseen windows | 3.0000 |" in page
    assert "| new | bits per weight |" not in page


def test_a_file_of_transforms_is_taken_over_under_its_name(tmp_path):
    about = training() | {"kind": KIND, "model_digest": "0", "text": "/a/folder/text.txt", "control": training()}
    save_transforms(tmp_path / "mine.safetensors", {"residual": (hadamard(16), 16)}, about=about)
    record = script.take_over([tmp_path / "mine.safetensors"], {"another": training(), "mine": {"model": "small"}})
    assert list(record) == ["another", "mine"]
    assert record["mine"] == training() | {"control": {"measured": training()["measured"]}}, (
        "and no folder of a machine"
    )
    with pytest.raises(SystemExit, match="another model"):
        script.take_over([tmp_path / "mine.safetensors"], {"another": training() | {"model": "large"}})


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match=r"x\.safetensors"):
        script.take_over([tmp_path / "x.safetensors"], {})
