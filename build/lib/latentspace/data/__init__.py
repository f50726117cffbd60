"""Data sets by name: `load("mnist", "train")`; `python -m latentspace.data` lists and fetches them.

Embedded sets (moons, colour-shapes, digits, mnist-5k) need neither network nor disk. The others
are read from the data home, the folder named by the environment variable LATENTSPACE_DATA or else
the user's cache folder; what is not there is fetched from its public home.
"""

from latentspace.data.class_names import superclasses
from latentspace.data.embedded import Dataset, colour_shapes, moons
from latentspace.data.imbalance import long_tailed, step_imbalance
from latentspace.data.store import data_home, fetch, gather, load, names
from latentspace.files import fingerprint

__all__ = [
    "Dataset", "colour_shapes", "data_home", "fetch", "fingerprint", "gather", "load",
    "long_tailed", "moons", "names", "step_imbalance", "superclasses",
]  # fmt: skip
