"""The tutorial's training loop against ours: seconds an epoch over the same 60,000 images, taking turns in one run.

    python benchmarks/train.py --data-dir ../shared/data

Both train the same network with the same settings on the CPU, or on the GPU with --device cuda. The tutorial's loop is as
it is commonly written: torchvision's MNIST, ToTensor, Normalize, a DataLoader, Adam. The second figure for ours adds what
`oddigit train` does after each epoch and the tutorial does not: losses on fit and test images, and a checkpoint. All
use one thread unless told otherwise: torch's own choice of more makes either loop a little faster on an idle machine and
many times slower on a busy one, the tutorial's most of all.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.detection.runtimes import choose_device
from app.network.autoencoder import Autoencoder
from app.training.calibration import flatten
from app.training.checkpoint import save_checkpoint
from app.training.config import TrainConfig
from app.training.datasets import DataError, load_dataset
from app.training.progress import SILENT
from app.training.train import Training, record_epoch, run_epoch


def tutorial_epoch(data_dir: Path, device: torch.device) -> Callable[[], None]:
    """The tutorial's loop, ready to run an epoch."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    loader = DataLoader(datasets.MNIST(str(data_dir), transform=prepare, download=True), batch_size=128, shuffle=True)
    model = Autoencoder().to(device)
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)

    def epoch() -> None:
        for images, _ in loader:
            images = images.view(images.size(0), -1).to(device)
            loss = criterion(model(images), images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def our_epoch(data_dir: Path, device: torch.device) -> Callable[[], None]:
    """Our loop over all training images, none held back, ready to run an epoch."""
    images = flatten(load_dataset("mnist", data_dir=data_dir).train.images, device)
    config = TrainConfig()
    training = Training(config, device)

    def epoch() -> None:
        run_epoch(training, config, images, SILENT)

    return epoch


def our_whole_epoch(data_dir: Path, device: torch.device, folder: Path) -> Callable[[], None]:
    """The same with all that the trainer does around it, ready to run an epoch."""
    dataset = load_dataset("mnist", data_dir=data_dir)
    images, test = flatten(dataset.train.images, device), flatten(dataset.test_or_all.images, device)
    config = TrainConfig()
    training = Training(config, device)

    def epoch() -> None:
        run_epoch(training, config, images, SILENT)
        record_epoch(training, config, images, test, SILENT)
        save_checkpoint(training.state(), folder / "checkpoint.pth")

    return epoch


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Wall time of one run, the device's work included."""
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where MNIST lies or is downloaded to")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each loop")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        load_dataset("mnist", data_dir=options.data_dir)
    except DataError as error:
        sys.exit(str(error))
    device = torch.device(choose_device(options.device, "torch"))
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "tutorial": tutorial_epoch(options.data_dir, device),
            "oddigit": our_epoch(options.data_dir, device),
            "oddigit with losses and checkpoint": our_whole_epoch(options.data_dir, device, Path(folder)),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for index in range(options.rounds):
            for name, run in runs.items():
                times[name].append(seconds(run, device))
            print(f"round {index + 1}: " + "  ".join(f"{name} {taken[-1]:.2f} s" for name, taken in times.items()))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    for name, median in medians.items():
        ratio = medians["tutorial"] / median
        print(f"{name:>34}: {median:.2f} s an epoch, {60_000 / median:,.0f} images/s, {ratio:.1f} times the tutorial's speed")


if __name__ == "__main__":
    main()
