"""WikiText-2, the text on which perplexities of compressed models are published."""

import io
import zipfile
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from .errors import OccError

_REPOSITORY = "ggml-org/ci"
_ARCHIVE = "wikitext-2-raw-v1.zip"
_MEMBER = "wikitext-2-raw/wiki.test.raw"
_FIRST_HEADING = "= Robert Boulter ="


def wikitext2_test(layout: Literal["rows", "raw"] = "rows") -> str:
    r"""Return the raw (not tokenised) test split of WikiText-2, from the hub or its cache.

    The archive of the original text files is taken, not the ``Salesforce/wikitext`` copy of the same text, because
    the latter needs a Parquet reader.

    Args:
        layout: ``"rows"`` joins the data set's rows by blank lines, as the tables of GPTQ and its successors
            do (``"\n\n".join(dataset["text"])``); ``"raw"`` is the file as it is. Perplexities of the two
            differ slightly and must not be compared.

    Raises:
        OccError: neither a network nor a copy in the cache, or the archive is not what it should be.

    References:
        Merity et al., Pointer Sentinel Mixture Models, arXiv 1609.07843 (Section 4.3).
    """
    try:
        # A snapshot of one file: without a network it fails at once, where hf_hub_download tries for half a minute.
        directory = snapshot_download(_REPOSITORY, repo_type="dataset", allow_patterns=[_ARCHIVE])
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise OccError(
            "wikitext2: cannot be downloaded from the hub (no network, or HF_HUB_OFFLINE is set); "
            "go online once, or give a text file with --text FILE."
        ) from error
    text = read_wikitext2(Path(directory) / _ARCHIVE)
    return text if layout == "raw" else rows_joined(text)


def read_wikitext2(archive: Path) -> str:
    """Read the test split out of the archive of raw text files.

    Raises:
        OccError: the archive is damaged or holds another text.
    """
    try:
        with zipfile.ZipFile(archive) as files:
            text = files.read(_MEMBER).decode("utf-8")
    except (OSError, zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise OccError(f"{archive}: not the WikiText-2 archive ({error}); delete it and run again.") from error
    if _FIRST_HEADING not in text[:100]:
        raise OccError(f"{archive}: holds another text than WikiText-2; delete it and run again.")
    return text


def rows_joined(text: str) -> str:
    r"""Join the lines as the published tables do: each keeps its line feed, empty ones lose it, two more between.

    Example:
        >>> rows_joined(" \n = Title = \n")
        '\n\n = Title = \n'
    """
    return "\n\n".join(line if line.strip() else "" for line in io.StringIO(text, newline="\n"))
