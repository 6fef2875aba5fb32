"""Put the measured results into the READMEs, from one record, so that the two cannot drift apart.

    python scripts/update_readme.py            # take over demo/results.json and its figure, rewrite the READMEs
    python scripts/update_readme.py --check    # exit code 1 unless the READMEs say what the record says

``make demo`` writes into ``demo/``, which is not kept. This script takes the results over into ``docs/results/``,
which is, and writes the table between the markers of every README.
"""

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from pages import ResultsError, replace_results, table

ROOT = Path(__file__).resolve().parent.parent
MEASURED = Path("demo/results.json")
MEASURED_FIGURE = Path("demo/rate_distortion.svg")
RECORD = Path("docs/results/demo.json")
FIGURE = Path("docs/results/rate_distortion.svg")
COMMAND = "make demo"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """What a README says around the numbers."""

    columns: tuple[str, str, str, str, str]
    caption: str
    figure: str
    absent: str


PAGES: Mapping[str, Words] = {
    "README.md": Words(
        columns=("coordinates", "bits per linear weight", "file bytes", "perplexity", "KL ± standard error"),
        caption=(
            "`{model}`, evaluated on {windows} windows of {window} tokens ({text}) and calibrated on other text "
            "({calibration}). The uncompressed model has perplexity {reference:.3f}; KL is in nats per token. "
            "Made by `{command}`."
        ),
        figure="KL divergence against file size",
        absent="No results are recorded yet: `{command}` measures them.",
    ),
    "README.ko.md": Words(
        columns=("좌표계", "선형 가중치당 비트", "파일 바이트", "퍼플렉시티", "KL ± 표준오차"),
        caption=(
            "모델은 `{model}`입니다. {window} 토큰 창 {windows}개({text})로 평가했고, 보정에는 다른 텍스트"
            "({calibration})를 썼습니다. 압축하지 않은 모델의 퍼플렉시티는 {reference:.3f}이며, KL의 단위는 토큰당 "
            "nat입니다. `{command}`로 얻은 결과입니다."
        ),
        figure="파일 크기에 따른 KL 발산",
        absent="아직 기록된 결과가 없습니다. `{command}`로 측정할 수 있습니다.",
    ),
}


def read_results(path: Path) -> dict[str, Any]:
    """The results of a demo run, with the text named without its folders.

    Raises:
        ResultsError: no such file, or a file that is not such results.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file; run `{COMMAND}` first") from None
    except ValueError as error:
        raise ResultsError(f"{path} is not JSON ({error}); run `{COMMAND}` again") from None
    try:
        results["text"] = PurePath(results["text"]).name
        if not isinstance(results["model"], str):
            raise TypeError(results["model"])
        render(results, PAGES["README.md"])
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{path} lacks a field or has a wrong one ({error!r}); run `{COMMAND}` again") from None
    if not results["rows"]:
        raise ResultsError(f"{path} has no rows; run `{COMMAND}` again")
    return results


def render(results: Mapping[str, Any] | None, words: Words) -> str:
    """What stands between the markers: a sentence, the table and the figure; ``None`` for no results yet."""
    if results is None:
        return words.absent.format(command=COMMAND)
    caption = words.caption.format(
        model=results["model"],
        text=results["text"],
        calibration=results["calibration"],
        windows=results["windows"],
        window=results["window"],
        reference=results["reference_perplexity"],
        command=COMMAND,
    )
    rows = (_cells(row, _label(row, results["rows"])) for row in results["rows"])
    return "\n".join([caption, "", table(words.columns, rows), "", f"![{words.figure}]({FIGURE.as_posix()})"])


def _cells(row: Mapping[str, Any], label: str) -> tuple[str, ...]:
    kl = f"{row['kl_mean']:.4f} ± {row['kl_se']:.4f}"
    return label, f"{row['linear_bits_per_weight']:.3f}", f"{row['file_bytes']:,}", f"{row['perplexity']:.3f}", kl


def _label(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The coordinates, and the quantizer where the rows differ in it."""
    kinds = {(other["quantizer"], other["feedback"]) for other in rows}
    feedback = " with feedback" if row["feedback"] else ""
    return row["coordinates"] if len(kinds) == 1 else f"{row['coordinates']}, {row['quantizer']}{feedback}"


def update(root: Path = ROOT) -> None:
    """Take over the measured results and their figure, and rewrite the pages."""
    results = read_results(root / MEASURED)
    if not (root / MEASURED_FIGURE).is_file():
        raise ResultsError(f"{root / MEASURED_FIGURE}: no such file; run `{COMMAND}` again")
    pages = {name: (root / name).read_text(encoding="utf-8") for name in PAGES}
    pages = {name: replace_results(page, render(results, PAGES[name]), name) for name, page in pages.items()}
    (root / RECORD).parent.mkdir(parents=True, exist_ok=True)
    (root / RECORD).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(root / MEASURED_FIGURE, root / FIGURE)
    for name, page in pages.items():
        (root / name).write_text(page, encoding="utf-8")


def differences(root: Path = ROOT) -> list[str]:
    """One sentence for everything that the pages and the figure do not say as the record does."""
    results = read_results(root / RECORD) if (root / RECORD).exists() else None
    found = []
    for name, words in PAGES.items():
        page = (root / name).read_text(encoding="utf-8")
        if page != replace_results(page, render(results, words), name):
            found.append(f"{name} does not say what {RECORD} says: run `python scripts/update_readme.py`")
    if results is None:
        return found
    if not (root / FIGURE).is_file():
        return [*found, f"{FIGURE} is missing: run `python scripts/update_readme.py`"]
    figure = (root / FIGURE).read_text(encoding="utf-8")
    names = dict.fromkeys([results["model"], *(row["coordinates"] for row in results["rows"])])
    found += [
        f"{FIGURE} does not show {name}: it is not the figure of {RECORD}" for name in names if name not in figure
    ]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the READMEs have drifted")
    try:
        if not parser.parse_args(arguments).check:
            update()
            return 0
        found = differences()
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
