"""What ``asr.prepare`` has written into an output folder before."""

import json
from pathlib import Path

from asr.errors import ManifestError

SUMMARY_NAME = "prepare.json"


def manifest_path(output: Path, name: str) -> Path:
    """Of a split or a named part."""
    return output / f"{name}.jsonl"


def names_written(output: Path) -> set[str]:
    """Names of the manifests that an earlier run left in ``output``."""
    try:
        return set(json.loads((output / SUMMARY_NAME).read_text("utf-8"))["manifests"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def remove_written(output: Path) -> None:
    """Remove what an earlier run says of its audio, before other audio takes its place.

    So an interrupted run leaves no manifest that describes what is no longer there. Files of others stay.

    Raises:
        ManifestError: they cannot be removed.
    """
    paths = [manifest_path(output, name) for name in names_written(output)]
    try:
        for path in (*paths, output / SUMMARY_NAME):  # the list of the others last
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ManifestError(f"cannot remove {error.filename}: {error.strerror}") from None
