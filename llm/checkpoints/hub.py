"""Models on the Hugging Face hub: only the files that are read, through the hub's own cache."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import OccError
from .tokenizer_files import TOKENIZER_FILES

FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json", *TOKENIZER_FILES)
"""Patterns of the files to fetch: pickles, other frameworks' weights and second copies stay where they are."""

_HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


def parse_hub_id(source: str) -> tuple[str, str | None] | None:
    """Split ``organisation/name[@revision]``; ``None`` if ``source`` does not look like that.

    Example:
        >>> parse_hub_id("HuggingFaceTB/SmolLM2-135M@main")
        ('HuggingFaceTB/SmolLM2-135M', 'main')
        >>> parse_hub_id("./models/mine") is None
        True
    """
    match = _HUB_ID.fullmatch(source)
    return (match["id"], match["revision"]) if match else None


def fetch_from_hub(repo_id: str, revision: str | None = None) -> Path:
    """Download what is missing of a model and return the directory of the snapshot.

    ``HF_HOME`` decides where the cache is, ``HF_HUB_OFFLINE=1`` forbids to ask the hub, ``HF_TOKEN`` opens gated
    models.

    Raises:
        OccError: no such model or revision, no permission, or neither a network nor a copy in the cache.
    """
    with explain_hub_errors(repo_id):
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES)))


@contextlib.contextmanager
def explain_hub_errors(repo_id: str) -> Iterator[None]:
    """Turn every error of ``huggingface_hub`` into one sentence.

    Raises:
        OccError: in place of the hub's error.
    """
    try:
        yield
    except GatedRepoError as error:
        raise OccError(f"{repo_id}: a gated model; accept its terms on the hub and set HF_TOKEN.") from error
    except RepositoryNotFoundError as error:
        raise OccError(f"{repo_id}: no such file here and no such model on the hub; check the spelling.") from error
    except RevisionNotFoundError as error:
        raise OccError(f"{repo_id}: the hub has no such revision; leave out what follows the @.") from error
    except HFValidationError as error:
        raise OccError(f"{repo_id}: no such file here and not a valid hub id; check the spelling.") from error
    except LocalEntryNotFoundError as error:
        raise OccError(
            f"{repo_id}: no such file here, not in the hub's cache, and the hub cannot be asked (no network, or "
            "HF_HUB_OFFLINE is set); go online once, or give a local path."
        ) from error
    except HfHubHTTPError as error:
        raise OccError(f"{repo_id}: the hub answered with an error ({error}); try again later.") from error
