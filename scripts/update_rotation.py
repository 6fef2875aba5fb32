"""Put what rotation does, and what alignment does, into the pages about it, from the record of the bench.

    occ learn MODEL layerwise-int3.safetensors --text FILE --text-share 0.6 --calibration-windows 32 \\
        --objective int --bits 3 --init hadamard
    occ learn MODEL end-to-end-int2.safetensors --text FILE --text-share 0.6 --calibration-windows 32 \\
        --objective kl --bits 2 --clip --init learned --transforms layerwise-int2-clipped.safetensors \\
        --steps 60 --learning-rate 0.001 --refresh 1
    occ bench MODEL --text FILE --coordinates identity hadamard klt learned --seeds 5 \\
        --transforms layerwise-int3.safetensors --methods int-gptq-128 scalar trellis-8 --rates 1.5 2 2.5 3
    python scripts/update_bench.py bench         # takes the rows over into docs/results/bench.json
    python scripts/update_rotation.py            # rewrites the tables of both pages
    python scripts/update_rotation.py --check    # exit code 1 unless the pages say what the record says

Integers of one width have one size, so their divergences are compared directly, with standard errors of the paired
differences over windows; several draws of random coordinates are one line with their spread. Entropy-coded files are
compared by the bytes that they need at equal divergence, and by their divergence at equal bytes with the standard error
of paired differences (log KL linear in bytes between neighbours that are not far apart, nothing extrapolated). A page
keeps everything outside of its two markers.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from occ_llm.results import Row, bytes_at_kl, change_at_bytes, paired_change
from pages import table, update_pages

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path("docs/results/bench.json")
COMMAND = "python scripts/update_rotation.py"
RANDOM = ("hadamard", "random")
LEARNED = "learned"

PAGES: Mapping[str, Mapping[str, Any]] = {
    "docs/theory/rotation_vs_alignment.md": {
        "integers": "### Integers with shared scales",
        "coded": "### Entropy-coded files",
        "integer columns": (
            "quantizer", "bits per linear weight", "coordinates", "perplexity", "KL ± se", "against the mean Hadamard",
        ),
        "coded columns": ("quantizer", "coordinates", "bits per linear weight", "file bytes", "perplexity", "KL ± se",
                          "bytes against the best fixed coordinates at this KL", "KL against the best at these bytes"),
        "draws": "{place}, mean of {draws} draws (KL spread {spread:.4f})",
        "feedback": ("no feedback", "with feedback"),
        "none": "Nothing has been measured yet.",
    },
    "docs/theory/rotation_vs_alignment.ko.md": {
        "integers": "### 스케일을 공유하는 정수",
        "coded": "### 엔트로피 부호화한 파일",
        "integer columns": (
            "양자화기", "선형 가중치당 비트", "좌표계", "퍼플렉시티", "KL ± 표준 오차", "Hadamard 평균 대비",
        ),
        "coded columns": ("양자화기", "좌표계", "선형 가중치당 비트", "파일 바이트", "퍼플렉시티", "KL ± 표준 오차",
                          "같은 KL에서 가장 좋은 고정 좌표계 대비 바이트",
                          "같은 바이트에서 가장 좋은 고정 좌표계 대비 KL"),
        "draws": "{place}, 표본 {draws}개의 평균 (KL 표준 편차 {spread:.4f})",
        "feedback": ("피드백 없음", "피드백 있음"),
        "none": "아직 측정한 것이 없습니다.",
    },
}  # fmt: skip
"""Page -> what it says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerLine:
    """Files of one width in one basis.

    Attributes:
        rows: one for each draw of the coordinates.
        place: the basis.
        change: of the divergence against the mean over the draws of the Hadamard basis, with its standard error.
    """

    rows: Sequence[Row]
    place: str
    change: tuple[float, float] | None

    def mean(self, field: str) -> float:
        """Mean over the draws."""
        return float(np.mean([getattr(row, field) for row in self.rows]))


def basis(row: Row) -> str:
    """Name of the coordinates without the number of the draw."""
    first = row.coordinates.split(" ")[0]
    return first if first in RANDOM else row.coordinates


def grouped(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by a key, in the order of their first one."""
    return {name: [row for row in rows if key(row) == name] for name in dict.fromkeys(map(key, rows))}


def compare_integers(rows: Sequence[Row]) -> Iterator[IntegerLine]:
    """Divergences at each size, best last: every basis against the mean over the draws of the Hadamard basis."""
    ordered = sorted(rows, key=lambda r: (r.quantizer, r.feedback, -r.linear_bits_per_weight))
    sizes = grouped(ordered, lambda r: (r.quantizer, r.feedback, round(r.linear_bits_per_weight)))
    for alike in sizes.values():
        places = grouped(alike, basis)
        drawn = places.get("hadamard", [])
        changes = {place: paired_change(draws[0], drawn) for place, draws in places.items() if place not in RANDOM}
        lines = [IntegerLine(rows=draws, place=p, change=changes.get(p)) for p, draws in places.items()]
        yield from sorted(lines, key=lambda line: -line.mean("kl_mean"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodedLine:
    """An entropy-coded file against fixed coordinates.

    Attributes:
        row: the file.
        bytes: best fixed basis at its divergence, and its bytes over those of that basis, less one.
        kl: best fixed basis at its size, and the change of its divergence against that, with a standard error.
    """

    row: Row
    bytes: tuple[str, float] | None
    kl: tuple[str, tuple[float, float]] | None


def compare_coded(rows: Sequence[Row]) -> Iterator[CodedLine]:
    """Every file against the best fixed basis that reaches its divergence, and its size."""
    ordered = sorted(rows, key=lambda r: (r.quantizer, r.feedback, r.coordinates, r.file_bytes))
    for alike in grouped(ordered, lambda r: (r.quantizer, r.feedback)).values():
        curves = {n: c for n, c in grouped(alike, lambda r: r.coordinates).items() if not n.startswith(LEARNED)}
        for row in alike:
            others = {name: curve for name, curve in curves.items() if name != row.coordinates}
            sizes = {n: row.file_bytes / size - 1 for n, c in others.items() if (size := bytes_at_kl(c, row.kl_mean))}
            changes = {n: change for n, c in others.items() if (change := change_at_bytes(row, c))}
            yield CodedLine(
                row=row,
                bytes=max(sizes.items(), key=lambda item: item[1], default=None),
                kl=max(changes.items(), key=lambda item: item[1], default=None),
            )


def render(record: Mapping[str, Any], words: Mapping[str, Any]) -> str:
    """Both tables of a page; of quantizers that were tried in more than one basis."""
    rows = [Row.from_json(row) for row in record["rows"]]
    many = {q for q, alike in grouped(rows, lambda r: r.quantizer).items() if len({basis(r) for r in alike}) > 1}
    integers = [row for row in rows if row.quantizer in many and row.quantizer.startswith("integers")]
    coded = [row for row in rows if row.quantizer in many and not row.quantizer.startswith("integers")]
    parts = []
    if integers:
        parts += [words["integers"], table(words["integer columns"], _integer_cells(integers, words), names=3)]
    if coded:
        parts += [words["coded"], table(words["coded columns"], _coded_cells(coded, words), names=2)]
    return "\n\n".join(parts) if parts else words["none"]


def _integer_cells(rows: Sequence[Row], words: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for line in compare_integers(rows):
        kl, draws, place = [row.kl_mean for row in line.rows], len(line.rows), line.place
        if draws > 1:
            place = words["draws"].format(place=place, draws=draws, spread=np.std(kl, ddof=1))
        first, error = line.rows[0], line.mean("kl_se")
        yield (
            f"{first.quantizer}, {words['feedback'][first.feedback]}",
            f"{first.linear_bits_per_weight:.3f}",
            place,
            _perplexity(line.mean("perplexity")),
            f"{np.mean(kl):.4f} ± {error:.4f}",
            _change(line.change),
        )


def _coded_cells(rows: Sequence[Row], words: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for line in compare_coded(rows):
        row = line.row
        yield (
            f"{row.quantizer}, {words['feedback'][row.feedback]}",
            row.coordinates,
            f"{row.linear_bits_per_weight:.3f}",
            f"{row.file_bytes:,}",
            _perplexity(row.perplexity),
            f"{row.kl_mean:.4f} ± {row.kl_se:.4f}",
            "" if line.bytes is None else f"{line.bytes[1]:+.1%} ({line.bytes[0]})",
            "" if line.kl is None else f"{_change(line.kl[1])} ({line.kl[0]})",
        )


def _change(change: tuple[float, float] | None) -> str:
    return "" if change is None else f"{change[0]:+.1%} ± {change[1]:.1%}"


def _perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def main(check: bool = False, root: Path = ROOT) -> None:
    """Rewrite the pages, or check them.

    Args:
        check: change nothing; exit code 1 if a page has drifted from the record.
        root: of the repository.
    """
    record = json.loads((root / RECORD).read_text(encoding="utf-8"))
    update_pages(PAGES, lambda words: render(record, words), root=root, record=RECORD, command=COMMAND, check=check)


if __name__ == "__main__":
    tyro.cli(main)
