"""The library under the textbook *Shaping Latent Space*.

Each module holds one idea and is imported by its name, as in
``from latentspace import metrics``. Importing the package loads none of them.
"""

__version__ = "0.1.0"
