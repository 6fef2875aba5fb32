"""Put what rotation does, and what alignment does, into the pages about it, from the record of the bench.

    occ learn MODEL layerwise-int3-feedback.safetensors --text FILE --text-share 0.6 --calibration-windows 32 \\
        --objective int --bits 3 --init hadamard
    occ learn MODEL end-to-end-int2.safetensors --text FILE --text-share 0.6 --calibration-windows 32 \\
        --objective kl --bits 2 --clip --init learned --transforms layerwise-int2-clipped.safetensors \\
        --steps 60 --learning-rate 0.001 --refresh 1
    occ bench MODEL --text FILE --coordinates identity hadamard klt learned --seeds 5 \\
        --transforms layerwise-int3-feedback.safetensors --methods int-gptq-128 scalar trellis-8 --rates 1.5 2 2.5 3
    python scripts/update_bench.py bench         # takes the rows over into docs/results/bench.json
    python scripts/update_rotation.py            # rewrites the tables of both pages
    python scripts/update_rotation.py --check    # exit code 1 unless the pages say what the record says

Integers of one width are compared directly, with standard errors of the paired differences over windows and over the
draws of the random basis. Their files differ by what the bases take, less than half a percent: one column more has the
divergence at the size of each, along the line through the Hadamard's files of this and the next width. Entropy-coded
files are compared by the bytes that they need at equal divergence, with the standard error of a jackknife over windows,
and by their divergence at equal bytes with the standard error of paired differences (log KL linear in bytes between
neighbours that are not far apart, nothing extrapolated). Several draws of random coordinates are one line with their
spread. A page keeps everything outside of its two markers.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from occ_llm.results import Draws, Row, change_at_bytes, change_of_bytes, over_draws, paired_change
from pages import changed, table, update_pages

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
            "quantizer", "bits per linear weight", "coordinates", "file bytes", "perplexity", "KL ± se",
            "against the mean Hadamard", "at its bytes",
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
            "양자화기", "선형 가중치당 비트", "좌표계", "파일 바이트", "퍼플렉시티", "KL ± 표준 오차",
            "Hadamard 평균 대비", "같은 바이트에서",
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
        files: over the draws of the coordinates.
        change: of the divergence against the mean over the draws of the Hadamard basis, with its standard error.
        at_bytes: the same change against such a basis at the size of this file.
    """

    files: Draws
    change: tuple[float, float] | None
    at_bytes: float | None


def grouped(files: Sequence[Draws], key: Callable[[Row], Any]) -> dict[Any, list[Draws]]:
    """Files by a key of their row, in the order of their first one."""
    return {name: [f for f in files if key(f.row) == name] for name in dict.fromkeys(key(f.row) for f in files)}


def compare_integers(files: Sequence[Draws]) -> Iterator[IntegerLine]:
    """Divergences at each size, best last: every basis against the mean over the draws of the Hadamard basis."""
    ordered = sorted(files, key=lambda f: (f.row.quantizer, f.row.feedback, -f.row.linear_bits_per_weight))
    for alike in grouped(ordered, lambda r: (r.quantizer, r.feedback)).values():
        curve = [f.row for f in alike if f.row.coordinates == "hadamard"]
        for same_width in grouped(alike, lambda r: round(r.linear_bits_per_weight)).values():
            basis = next((f for f in same_width if f.row.coordinates == "hadamard"), None)
            for one in sorted(same_width, key=lambda f: -f.row.kl_mean):
                yield _against(one, basis, curve)


def _against(one: Draws, basis: Draws | None, curve: Sequence[Row]) -> IntegerLine:
    if basis is None or one.row.coordinates in RANDOM:
        return IntegerLine(files=one, change=None, at_bytes=None)
    change = paired_change(one.row, basis.draws)
    at_bytes = None if change is None else at_own_size(change[0], one.row, basis.row, curve)
    return IntegerLine(files=one, change=change, at_bytes=at_bytes)


def at_own_size(change: float, row: Row, basis: Row, curve: Sequence[Row]) -> float | None:
    """A change of the divergence against files of a basis, as if these were as large as the file that changes it.

    Args:
        change: against ``basis``.
        row: the file.
        basis: of nearly its size.
        curve: the files of the basis; its neighbour there says what bytes are worth.
    """
    others = [other for other in curve if other is not basis]
    if not others:
        return None
    near = min(others, key=lambda other: abs(other.file_bytes - basis.file_bytes))
    slope = math.log(near.kl_mean / basis.kl_mean) / (near.file_bytes - basis.file_bytes)
    return (1 + change) * math.exp(slope * (basis.file_bytes - row.file_bytes)) - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodedLine:
    """An entropy-coded file against fixed coordinates.

    Attributes:
        files: the file, or the mean over the draws of its coordinates.
        bytes: best fixed basis at its divergence, and its bytes over those of that basis, less one, with a standard
            error.
        kl: best fixed basis at its size, and the change of its divergence against that, with a standard error.
    """

    files: Draws
    bytes: tuple[str, tuple[float, float | None]] | None
    kl: tuple[str, tuple[float, float]] | None


def compare_coded(files: Sequence[Draws]) -> Iterator[CodedLine]:
    """Every file against the best fixed basis that reaches its divergence, and its size."""
    ordered = sorted(files, key=lambda f: (f.row.quantizer, f.row.feedback, f.row.coordinates, f.row.file_bytes))
    for alike in grouped(ordered, lambda r: (r.quantizer, r.feedback)).values():
        bases = grouped(alike, lambda r: r.coordinates).items()
        curves = {name: [f.row for f in curve] for name, curve in bases if not name.startswith(LEARNED)}
        for one in alike:
            row = one.row
            others = {name: curve for name, curve in curves.items() if name != row.coordinates}
            sizes = {n: change for n, c in others.items() if (change := change_of_bytes(row, c))}
            changes = {n: change for n, c in others.items() if (change := change_at_bytes(row, c))}
            yield CodedLine(
                files=one,
                bytes=max(sizes.items(), key=lambda item: item[1][0], default=None),
                kl=max(changes.items(), key=lambda item: item[1], default=None),
            )


def render(record: Mapping[str, Any], words: Mapping[str, Any]) -> str:
    """Both tables of a page; of quantizers that were tried in more than one basis."""
    files = over_draws([Row.from_json(row) for row in record["rows"]])
    bases = {q: {f.row.coordinates for f in alike} for q, alike in grouped(files, lambda r: r.quantizer).items()}
    compared = grouped([f for f in files if len(bases[f.row.quantizer]) > 1], _is_integer)
    integers, coded = compared.get(True, []), compared.get(False, [])
    parts = []
    if integers:
        parts += [words["integers"], table(words["integer columns"], _integer_cells(integers, words), names=3)]
    if coded:
        parts += [words["coded"], table(words["coded columns"], _coded_cells(coded, words), names=2)]
    return "\n\n".join(parts) if parts else words["none"]


def _is_integer(row: Row) -> bool:
    return row.quantizer.startswith("integers")


def _integer_cells(files: Sequence[Draws], words: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for line in compare_integers(files):
        row = line.files.row
        yield (
            f"{row.quantizer}, {words['feedback'][row.feedback]}",
            f"{row.linear_bits_per_weight:.3f}",
            _place(line.files, words),
            f"{row.file_bytes:,}",
            _perplexity(row.perplexity),
            f"{row.kl_mean:.4f} ± {row.kl_se:.4f}",
            changed(line.change),
            "" if line.at_bytes is None else f"{line.at_bytes:+.1%}",
        )


def _coded_cells(files: Sequence[Draws], words: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for line in compare_coded(files):
        row = line.files.row
        yield (
            f"{row.quantizer}, {words['feedback'][row.feedback]}",
            _place(line.files, words),
            f"{row.linear_bits_per_weight:.3f}",
            f"{row.file_bytes:,}",
            _perplexity(row.perplexity),
            f"{row.kl_mean:.4f} ± {row.kl_se:.4f}",
            "" if line.bytes is None else f"{changed(line.bytes[1])} ({line.bytes[0]})",
            "" if line.kl is None else f"{changed(line.kl[1])} ({line.kl[0]})",
        )


def _place(files: Draws, words: Mapping[str, Any]) -> str:
    place = files.row.coordinates
    return place if files.number == 1 else words["draws"].format(place=place, draws=files.number, spread=files.spread)


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
