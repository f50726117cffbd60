"""How files are downloaded: with a hash, a time-out, a word on what is waited for, one more try."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pooch

__all__ = ["SILENCE", "check_crc", "download", "fetcher"]

SILENCE = 60.0
"""Seconds that a server may keep a download waiting for its next bytes."""


def fetcher(
    folder: Path, base_url: str, sha256: Mapping[str, str | None]
) -> "pooch.Pooch":
    """Return a pooch that deletes a file whose hash is wrong and tries once more."""
    import pooch

    pooch.get_logger().setLevel("WARNING")  # its notes would end up in stored notebooks
    return pooch.create(folder, base_url, registry=sha256, retry_if_failed=1)


def download(
    url: str,
    path: str,
    fetcher: "pooch.Pooch",
    check: Callable[[str], None] = lambda path: None,
    progressbar: bool = True,
) -> None:
    """Download as pooch does, but wait at most `SILENCE` seconds for a silent server.

    `check` may raise ValueError for one more try.
    """
    import pooch

    if progressbar:  # which says nothing before the first byte
        print(f"fetching {url}", file=sys.stderr, flush=True)
    pooch.HTTPDownloader(progressbar=progressbar, timeout=SILENCE)(url, path, fetcher)
    check(path)


def check_crc(path: str) -> None:
    """Raise ValueError unless `path` is a whole zip archive (as torch writes) with right CRCs."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(f"the download is not a whole zip archive: {error}") from error
    if bad:
        raise ValueError(f"{bad} inside the download has a wrong CRC")
