"""Keep Thebe's scripts off the pages.

Jupyter Book always loads sphinx_thebe, which puts its settings on each page twice (the second
time is a script error) and names a file on another host. The book runs in Colab instead.
"""

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx_thebe")
    for listener in list(app.events.listeners["env-before-read-docs"]):
        if listener.handler.__name__ == "init_thebe_core":
            app.disconnect(listener.id)
    return {"parallel_read_safe": True}
