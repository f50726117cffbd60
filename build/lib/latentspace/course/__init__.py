"""The book as a course: run a chapter with other values, sweep over many, hand out, and check.

``python -m latentspace.course --help`` is the way in. It works on the book's checkout: the one that
the working directory is in, else the one that the library was installed from. It needs the extra
``book`` (``pip install -e '.[book]'``).
"""

__all__: list[str] = []
