"""`python -m latentspace.train_swav SET FOLDER`: SwAV on a whole set, also on several GPUs."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["main"]

OPTIONS = {
    "backbone": str, "n-prototypes": int, "dim": int, "n-local": int, "global-size": int,
    "local-size": int, "epochs": int, "batch-size": int, "lr": float, "freeze-steps": int,
    "queue-length": int, "random-state": int,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Train on a data set, in as many processes as started this: see ``--help``.

    A run that was killed continues from its last whole epoch when the same command is given again.
    """
    arguments = vars(_parser().parse_args(argv))
    from accelerate import Accelerator

    from latentspace import data
    from latentspace.swav import SwAV

    name, split, folder = (arguments.pop(key) for key in ("name", "split", "folder"))
    model = SwAV(**{"random_state": 0, "progress": True} | arguments)
    accelerator = Accelerator()
    x = data.load(name, split).x
    model.fit(x, checkpoint=folder / "checkpoint.pt", accelerator=accelerator)
    if accelerator.is_main_process:
        torch.save(model.network_.state_dict(), folder / "network.pt")
        model.history_.to_csv(folder / "history.csv", index=False)
    accelerator.end_training()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m latentspace.train_swav",
        description="Train SwAV on images; under torchrun, on several GPUs or machines. "
        "Writes network.pt, history.csv and, after each epoch, checkpoint.pt, from which the same "
        "command continues a run that was killed.",
    )
    parser.add_argument("name", help="a set of latentspace.data, such as cifar10")
    parser.add_argument("folder", type=_folder, help="where to write")
    parser.add_argument("--split", default="train")
    for option, kind in OPTIONS.items():
        parser.add_argument(f"--{option}", type=kind, default=argparse.SUPPRESS)
    parser.add_argument(
        "--mixed-precision", action="store_true", default=argparse.SUPPRESS, help="on CUDA"
    )
    return parser


def _folder(text: str) -> Path:
    """A folder that can be written to, made if it is not there: known before hours of training."""
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a folder to write to: {error}") from error
    return folder


if __name__ == "__main__":
    main()
