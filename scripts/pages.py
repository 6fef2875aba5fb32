"""Pages whose results stand between two markers, written by the scripts beside this one."""

import re

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


class ResultsError(ValueError):
    """Results that cannot be shown: one sentence with the file, the cause and what to do."""


def replace_results(page: str, body: str, name: str) -> str:
    """``page`` with ``body`` between its markers.

    Raises:
        ResultsError: the page has not exactly one pair of markers.
    """
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if len(pattern.findall(page)) != 1 or page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ResultsError(f"{name} must hold {BEGIN} and {END} once each: put them where the results belong")
    return pattern.sub(lambda _: f"{BEGIN}\n{body}\n{END}", page)
