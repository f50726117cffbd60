import sys

if "google.colab" in sys.modules:  # elsewhere the library is installed already
    from importlib.util import find_spec
    from subprocess import DEVNULL, call, check_call

    address = "https://github.com/shaping-latent-space/shaping-latent-space"
    version = "v0.1.0"
    tag = ["git", "ls-remote", "--exit-code", address, f"refs/tags/{version}"]
    if call(tag, stdout=DEVNULL) == 2:  # so git says that there is none
        print(f"{address} has no release {version}, so its branch main is installed.")
        version = "main"
    needs = {
        "hdbscan": "hdbscan",
        "mlxtend": "mlxtend",
        "pooch": "pooch",
        "pynndescent": "pynndescent",
        "umap": "umap-learn",
    }
    missing = [package for module, package in needs.items() if find_spec(module) is None]
    # So told, pip adds what is missing and changes nothing that is there.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    check_call([*pip, f"git+{address}@{version}", *missing])
