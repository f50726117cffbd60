"""Kernels that talk through sockets in a folder of their own.

Jupyter's default is TCP, at ports that were free a moment ago: two kernels that start at once can
get the same one, and the second never answers.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from traitlets.config import Config

__all__ = ["sockets"]


@contextmanager
def sockets() -> Iterator[Config]:
    """Give the configuration of one kernel whose sockets last as long as this context.

    On Windows, which has no such sockets for ZeroMQ, it is Jupyter's default.
    """
    if os.name == "nt":
        yield Config()
        return
    # A socket's path has some hundred characters at most: the system's folder is a short one.
    with tempfile.TemporaryDirectory(prefix="kernel-", ignore_cleanup_errors=True) as folder:
        connection = str(Path(folder) / "kernel.json")
        yield Config(KernelManager={"transport": "ipc", "connection_file": connection})
