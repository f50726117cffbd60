"""Files that appear whole or not at all, and fingerprints of arrays."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["fingerprint", "replacing", "write_bytes"]


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write to, which takes the place of ``path`` when the block ends well.

    A reader sees the old file or the new one, also after a crash; if the block raises, the old one
    stays and nothing else is left. The folder must exist.
    """
    path = Path(path)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> Path:
    """Write ``content`` as a whole, see `replacing`; returns the path."""
    with replacing(path) as file:
        file.write(content)
    return Path(path)


def fingerprint(*arrays: "np.ndarray") -> str:
    """Return 12 hex characters of a sha256 over each array's dtype, shape and bytes."""
    import numpy as np  # not above: the site is built without it, and reads records through here

    digest = hashlib.sha256()
    for array in arrays:
        array = np.asarray(array, order="C")
        if array.dtype.hasobject:
            raise ValueError("an array of Python objects has no fingerprint")
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:12]
