"""The tables of the READMEs say what the record of the bench says."""

import pytest
import update_headline as script


def row(coordinates: str, quantizer: str, bits: float) -> dict:
    return {
        "coordinates": coordinates,
        "quantizer": quantizer,
        "feedback": True,
        "linear_bits_per_weight": bits,
        "file_bytes": round(1e7 * bits),
        "perplexity": 21.0,
        "kl_mean": 0.1,
        "kl_se": 0.01,
        "seconds": 1.0,
        "kl_windows": [0.1],
    }


def test_the_readmes_say_what_the_record_says():
    script.main(check=True)


def test_each_line_is_the_file_nearest_to_its_rate_and_what_is_not_there_has_none():
    rows = [row(*script.PLAIN, 2.9), row(*script.PLAIN, 3.01), row(*script.LOW_RATE, 2.2)]
    rows += [row(*script.SAME_EMBEDDING, 2.5)]
    coordinates, quantizer = script.INTEGERS
    rows += [row(coordinates + draw, quantizer, 4.17) | {"kl_mean": kl} for draw, kl in (("", 0.2), (" 1", 0.4))]
    facts = {"model": "small", "windows": 2, "window": 64, "text": "text.txt", "reference_perplexity": 20.0}
    text = script.render({**facts, "rows": rows}, script.PAGES["README.md"])
    assert "| `occ compress --bits 3` | 3.010 | 30,100,000 | 21.00 | 0.1000 ± 0.0100 |" in text
    assert "after a random Hadamard, mean of 2 draws | 4.170 | 41,700,000 | 21.00 | 0.3000 ± 0.0100 |" in text
    assert "| trellis of 8 states, embedding in 8 bits | 2.500 |" in text
    assert "| `occ compress --bits 2` | 2.200 |" in text
    assert text.count("occ compress") == 2


def test_a_readme_without_a_place_for_them_is_named(tmp_path, monkeypatch):
    for name in (*script.PAGES, str(script.RECORD)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((script.ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "README.md").write_text("nothing", encoding="utf-8")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"README\.md must hold <!-- bench:begin -->"):
        script.main(check=True)
