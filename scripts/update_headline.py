"""Put the sizes of a model at each quality into the READMEs, from the record of the bench.

    python scripts/update_bench.py bench           # takes the rows of a bench over into docs/results/bench.json
    python scripts/update_headline.py              # rewrites the tables of both READMEs
    python scripts/update_headline.py --check      # exit code 1 unless they say what the record says

What ``occ compress`` does by default at each rate stands beside the integers that are customary today (GPTQ in groups
of 128 with searched ranges after a random Hadamard rotation, the mean of its draws), and beside our trellis with the
embedding as those integers have it.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from occ_llm.results import Draws, Row, over_draws
from pages import table, update_pages

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path("docs/results/bench.json")
COMMAND = "python scripts/update_headline.py"
KIND = "bench"

INTEGERS = ("hadamard", "integers, groups of 128, clipped")
SAME_EMBEDDING = ("identity", "trellis 8, embedding in 8 bits")
PLAIN = ("identity", "trellis 32")
LOW_RATE = ("identity", "trellis 32, outputs, finished")
SHOWN = (
    *((INTEGERS, rate) for rate in (4.0, 3.0)),
    *((SAME_EMBEDDING, rate) for rate in (3.0, 2.5)),
    *((PLAIN, rate) for rate in (3.5, 3.0)),
    *((LOW_RATE, rate) for rate in (2.5, 2.0)),
)
"""Coordinates and quantizer, and width of the integers or bits per linear weight."""

PAGES: Mapping[str, Mapping[str, str]] = {
    "README.md": {
        "caption": (
            "`{model}` on {windows} windows of {window} tokens of `{text}`, calibrated on other lines of it. The "
            "uncompressed model has perplexity {reference:.2f}; KL is in nats per token."
        ),
        "columns": "file | bits per linear weight | file bytes | perplexity | KL ± standard error",
        "integers": "{rate:.0f}-bit GPTQ with searched ranges after a random Hadamard, mean of {draws} draws",
        "embedding": "trellis of 8 states, embedding in 8 bits",
        "ours": "`occ compress --bits {rate:g}`",
    },
    "README.ko.md": {
        "caption": (
            "`{model}`을 `{text}`의 {window} 토큰 창 {windows}개로 평가했고, 보정에는 그 텍스트의 "
            "다른 줄을 썼습니다. 압축하지 않은 모델의 퍼플렉시티는 {reference:.2f}이며, KL의 단위는 토큰당 nat입니다."
        ),
        "columns": "파일 | 선형 가중치당 비트 | 파일 바이트 | 퍼플렉시티 | KL ± 표준오차",
        "integers": "무작위 Hadamard 뒤의 {rate:.0f}비트 GPTQ, 범위 탐색, 표본 {draws}개의 평균",
        "embedding": "상태 8개의 트렐리스, 임베딩은 8비트",
        "ours": "`occ compress --bits {rate:g}`",
    },
}
"""Page -> what it says."""


def render(record: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """A sentence and the table."""
    files = over_draws([Row.from_json(row) for row in record["rows"]])
    lines = []
    for method, rate in SHOWN:
        found = _nearest(files, method, rate)
        if found is not None:
            label = words[{INTEGERS: "integers", SAME_EMBEDDING: "embedding"}.get(method, "ours")]
            lines.append(_cells(found.row, label.format(rate=rate, draws=found.number)))
    facts = {name: record[name] for name in ("model", "windows", "window", "text")}
    caption = words["caption"].format(reference=record["reference_perplexity"], **facts)
    return "\n".join([caption, "", table(words["columns"].split(" | "), lines)])


def _nearest(files: list[Draws], method: tuple[str, str], rate: float) -> Draws | None:
    """The file of a method at about a rate; scales of integers come on top of their width."""

    def distance(file: Draws) -> float:
        return abs(file.row.linear_bits_per_weight - rate)

    found = [file for file in files if (file.row.coordinates, file.row.quantizer) == method and file.row.feedback]
    return min((file for file in found if distance(file) < 0.25), key=distance, default=None)


def _cells(row: Row, label: str) -> tuple[str, ...]:
    kl = f"{row.kl_mean:.4f} ± {row.kl_se:.4f}"
    return label, f"{row.linear_bits_per_weight:.3f}", f"{row.file_bytes:,}", f"{row.perplexity:.2f}", kl


def main(check: bool = False) -> None:
    """Rewrite the tables, or check them.

    Args:
        check: change nothing; exit code 1 if a README has drifted from the record.
    """
    record = json.loads((ROOT / RECORD).read_text(encoding="utf-8"))
    update_pages(PAGES, partial(render, record), root=ROOT, record=RECORD, command=COMMAND, check=check, kind=KIND)


if __name__ == "__main__":
    tyro.cli(main)
