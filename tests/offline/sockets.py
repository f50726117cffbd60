"""For nbval, as `-p sockets`: its kernels talk through sockets in Jupyter's runtime folder.

Over TCP two kernels that start at once can get one port, and the second never answers.
"""

import functools
import os

import nbval.kernel

if os.name != "nt":
    nbval.kernel.KernelManager = functools.partial(nbval.kernel.KernelManager, transport="ipc")
