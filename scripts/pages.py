"""Pages that the scripts beside this one write: whole, or the results between two markers."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

RESULTS = "results"


def markers(kind: str) -> tuple[str, str]:
    """What stands before and after the results of a kind in a page."""
    return f"<!-- {kind}:begin -->", f"<!-- {kind}:end -->"


BEGIN, END = markers(RESULTS)


class ResultsError(ValueError):
    """Results that cannot be shown: one sentence with the file, the cause and what to do."""


def replace_results(page: str, body: str, name: str, *, kind: str = RESULTS) -> str:
    """``page`` with ``body`` between the markers of a kind of results.

    Raises:
        ResultsError: the page has not exactly one pair of these markers.
    """
    begin, end = markers(kind)
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(page)) != 1 or page.count(begin) != 1 or page.count(end) != 1:
        raise ResultsError(f"{name} must hold {begin} and {end} once each: put them where the results belong")
    return pattern.sub(lambda _: f"{begin}\n{body}\n{end}", page)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> str:
    """A table whose first columns are names and whose others are numbers."""
    head = _line(columns), "|" + "---|" * names + "--:|" * (len(columns) - names)
    return "\n".join((*head, *map(_line, rows)))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def exit_checked(page: Path, due: str, *, root: Path, record: Path, command: str) -> NoReturn:
    """Exit: with code 1 and a sentence if a page that is written whole does not say what it should."""
    drifted = (root / page).read_text(encoding="utf-8") != due
    sys.exit(f"{page} does not say what {record} says: run `{command}`" if drifted else 0)


def update_whole(
    renew: Callable[[dict[str, Any]], dict[str, Any]] | None,
    render: Callable[[dict[str, Any]], str],
    *,
    check: bool,
    root: Path,
    record: Path,
    page: Path,
    command: str,
) -> dict[str, Any]:
    """Renew a record and write its page whole, or exit with whether that says what the record says.

    Args:
        renew: makes the new record of the one so far, which is empty where there is none; with ``None`` the page is
            written again from the record.
        render: makes the page of a record.
        check: change nothing.
        root: of the repository.
        record: file of the record there.
        page: file of the page there.
        command: that writes the page.

    Returns:
        The record.
    """
    file = root / record
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if check:
        exit_checked(page, render(found), root=root, record=record, command=command)
    if renew is not None:
        found = renew(found)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (root / page).write_text(render(found), encoding="utf-8")
    return found


def update_pages(
    pages: Mapping[str, Mapping[Any, Any]],
    render: Callable[[Mapping[Any, Any]], str],
    *,
    root: Path,
    record: Path,
    command: str,
    check: bool,
    kind: str = RESULTS,
) -> None:
    """Rewrite the results of some pages, or check them.

    Args:
        pages: file of a page -> the words that it says its results in.
        render: results in such words.
        root: of the repository.
        record: what the results were read from.
        command: what rewrites the pages.
        check: change nothing; exit code 1 if a page has drifted from the record.
        kind: of the results, by the name of their markers.

    Raises:
        SystemExit: a page has drifted, or has no place for results.
    """
    for name, words in pages.items():
        page = (root / name).read_text(encoding="utf-8")
        try:
            due = replace_results(page, render(words), name, kind=kind)
        except ResultsError as error:
            raise SystemExit(str(error)) from None
        if check and page != due:
            sys.exit(f"{name} does not say what {record} says: run `{command}`")
        if not check:
            (root / name).write_text(due, encoding="utf-8")


def changed(change: tuple[float, float | None] | None) -> str:
    """A relative change with its standard error, where there are such.

    Example:
        >>> changed((-0.031, 0.002)), changed((0.5, None)), changed(None)
        ('-3.1% ± 0.2%', '+50.0%', '')
    """
    if change is None:
        return ""
    return f"{change[0]:+.1%}" if change[1] is None else f"{change[0]:+.1%} ± {change[1]:.1%}"
