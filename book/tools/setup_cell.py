import sys

if "google.colab" in sys.modules:  # elsewhere the library is installed already
    from importlib.util import find_spec
    from subprocess import check_call

    address = "https://github.com/shaping-latent-space/shaping-latent-space"
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    check_call([*pip, "--no-deps", f"git+{address}@v0.1.0"])
    needs = {
        "hdbscan": "hdbscan",
        "mlxtend": "mlxtend",
        "pooch": "pooch",
        "umap": "umap-learn",
    }
    missing = [package for module, package in needs.items() if find_spec(module) is None]
    if missing:  # numpy and torch stay Colab's own
        check_call([*pip, *missing])
