"""The page of the benchmarks says what its record says, and takes over what ends with a benchmark's line."""

import json

import pytest
import update_benchmarks as script


def gaussian(states: int, rate: float, speed: float) -> dict:
    found = {"states": states, "bits": rate, "gap_bits": 0.1 * rate / states, "search_weights_per_s": speed}
    return found | {"target_bits": None if states == 1 else 0.077}


RESULT = {
    "benchmark": "gaussian",
    "samples": 4096,
    "rows": [gaussian(1, 2.0, 8.0), gaussian(1, 3.0, 8.0), gaussian(8, 2.0, 2.0), gaussian(8, 3.0, 2.0)],
}


def test_the_page_says_what_the_record_says():
    with pytest.raises(SystemExit) as exit_:
        script.main(check=True)
    assert exit_.value.code == 0


def test_the_last_line_of_a_file_replaces_what_was_recorded(tmp_path):
    file = tmp_path / "gaussian.json"
    file.write_text("a table for people\n" + json.dumps(RESULT) + "\n")
    record = script.take_over([file], {"scaling": {"kept": True}, "gaussian": {"old": True}})
    assert list(record) == ["gaussian", "scaling"]
    assert record["gaussian"]["samples"] == 4096
    page = script.page({"gaussian": record["gaussian"]})
    assert "| states | at about 2 | at about 3 | aim | time of the search |" in page
    assert "| 8 | 0.0250 | 0.0375 | 0.077 | 4.0 |" in page
    assert "| scalar | 0.2000 | 0.3000 |  | 1.0 |" in page


def test_what_a_stored_rotation_saves_stands_beside_what_it_takes():
    row = {"kind": "q", "structure": "butterfly", "gain_bits": 0.03, "cost_bits": 0.05, "control_bits": 0.01, "pays": 0}
    lines = script.stored_rotations({"model": "tiny", "blocks": 3, "matrix_bits": 3, "rows": [row]})
    assert "| `q_proj` | butterfly | 0.0300 | 0.0500 | 0.0100 | 0 of 3 |" in lines[-1]


def test_a_step_of_learning_stands_against_passes_over_its_tokens():
    rows = [{"objective": "scales", "windows": 1, "ratio": 0.321}, {"objective": "kl", "windows": 4, "ratio": 1.456}]
    lines = script.learning({"model": "tiny", "window": 512, "rows": rows})
    assert "| layer by layer | 512 | 0.32 |" in lines[-1]
    assert "| end to end | 2,048 | 1.46 |" in lines[-1]


def test_an_interrupt_that_changes_a_file_is_said():
    stage = {"exit_code": 130, "seconds": 9.0, "peak_memory_bytes": 2_500_000_000}
    result = {
        "parameters": 10**9,
        "file_bytes": 4 * 10**8,
        "compression interrupted": stage,
        "decompress": {**stage, "exit_code": 0},
    }
    for identical, words in ((True, "byte for byte"), (False, "**Without"), (None, "not compared")):
        text = "\n".join(script.streaming({**result, "identical": identical}))
        assert words in text
        assert "| compression interrupted | 2.50 GB | interrupted |" in text
        assert "| decompress | 2.50 GB |  |" in text


def test_what_a_model_takes_stands_with_the_machine():
    stage = {"exit_code": 0, "seconds": 90.0, "peak_memory_bytes": 2_500_000_000}
    stages = {"calibration": stage, "compression": {**stage, "exit_code": 2}}
    lines = script.cost({"model": "tiny", "windows": 32, "fisher_windows": 16, "cores": 2, **stages})
    assert "`tiny` on 2 cores" in lines[2]
    assert "| calibration | 1.5 | 2.50 GB |  |" in lines[-1]
    assert "| compression | 1.5 | 2.50 GB | exit code 2 |" in lines[-1]


@pytest.mark.parametrize(("content", "message"), [("", "no line of JSON"), ('{"benchmark": "rans"}', "not rans")])
def test_other_files_are_refused(content, message, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SystemExit, match=message):
        script.take_over([tmp_path / "x.json"], {})
