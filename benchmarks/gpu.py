"""The detector on a GPU against the CPU: equal scores, images a second, and the seconds of a training.

    python benchmarks/gpu.py --data-dir ../shared/data                 # CUDA against ONNX Runtime on the CPU
    python benchmarks/gpu.py --data-dir ../shared/data --device cpu    # torch on the CPU against ONNX Runtime

Prints the card's name, then
- parity: the largest relative difference of a score, and how many verdicts differ, on the MNIST test images and on each .npz
  under anomalies/ of the data folder;
- speed of `Detector.detect` for several batch sizes, the two runtimes in turn;
- what `ODDIGIT_DEVICE` makes of the server: an .npy of 10,000 images over HTTP and, where `wrk` is installed, one 28x28 PNG a
  request with 1, 32 and 256 connections, server on core 0 and load on core 1. A server reads large bodies at a limited rate,
  which is printed as images a second: on a GPU the figure of the arrays is that limit;
- with --train, the seconds of the tutorial's 100 epochs on 60,000 images.
"GPU busy" is the share of time in which a kernel ran, as `nvidia-smi` samples it.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from common import BUILD, ROOT, serving, seven_png, usage, wrk
from scaling import images_a_second, read_limit

from app.detection import store
from app.detection.detector import Detector
from app.detection.runtimes import DeviceError, choose_device
from app.training.calibration import flatten
from app.training.config import TrainConfig
from app.training.datasets import load_dataset
from app.training.progress import SILENT
from app.training.train import Training, run_epoch

BATCHES = (1, 8, 16, 32, 64, 256, 2048)
ARRAYS_S = 10.0  # for which arrays of 10,000 images are sent to a server
ROUNDS = 7  # the two runtimes in turn; the median is printed


def parity(cpu: Detector, other: Detector, sets: dict[str, np.ndarray]) -> None:
    """Scores and verdicts of both on each set, [N, 28, 28]."""
    threshold = cpu.bundle.card.threshold
    print("| set | images | largest relative difference of a score | verdicts that differ |")
    print("|---|---:|---:|---:|")
    for name, images in sets.items():
        ours, theirs = cpu.detect(images).scores, other.detect(images).scores
        difference = np.abs(theirs / ours - 1).max()
        print(f"| {name} | {len(images):,} | {difference:.1e} | {int(((ours > threshold) != (theirs > threshold)).sum())} |")


def speed(detectors: dict[str, Detector], images: np.ndarray) -> None:
    """Microseconds an image of `detect`, the detectors in turn."""
    print("\n| images in a batch | " + " | ".join(f"{name}, us an image" for name in detectors) + " |")
    print("|---:|" + "---:|" * len(detectors))
    for size in BATCHES:
        batch = np.ascontiguousarray(images[:size])
        calls = max(3, 2000 // size)
        times: dict[str, list[float]] = {name: [] for name in detectors}
        for _ in range(ROUNDS):
            for name, detector in detectors.items():
                times[name].append(seconds(lambda detector=detector, batch=batch: detector.detect(batch), calls) / calls / size)
        print(f"| {size:,} | " + " | ".join(f"{statistics.median(each) * 1e6:.1f}" for each in times.values()) + " |")


def seconds(call: Callable[[], object], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - began


@contextmanager
def gpu_load() -> Iterator[list[float]]:
    """Yields a list that holds, after the block, the share of time in [0, 1] in which a kernel ran, ten samples a second."""
    shares: list[float] = []
    if not shutil.which("nvidia-smi"):
        yield shares
        return
    gpu = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    command = ["nvidia-smi", f"--id={gpu}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sampler:
        try:
            yield shares
        finally:
            sampler.terminate()
            printed, _ = sampler.communicate()
    shares += [float(line) / 100 for line in printed.splitlines() if line.strip().isdigit()]


def in_words(shares: list[float]) -> str:
    return f", GPU busy {100 * statistics.mean(shares):.0f} %" if shares else ""


def served(device: str, images: np.ndarray) -> None:
    """What a server on `device` answers in a second, over HTTP on this machine."""
    log = BUILD / "gpu.log"
    with serving("--device", device, log=log, cores="0", ODDIGIT_ACCESS_LOG="false") as server:
        with gpu_load() as shares:
            rate = images_a_second(server.port, images, "application/x-npy", ARRAYS_S)
        rates = [f".npy of {len(images):,} images {rate:,.0f} images/s (it reads {read_limit()}){in_words(shares)}"]
        for connections in (1, 32, 256) if shutil.which("wrk") else ():
            with gpu_load() as shares:
                load = wrk(f"{server.url}/score", "image/png", seven_png(), connections=connections, seconds=4)
            told = f"{connections} connections {load.answers_per_s:,.0f} requests/s, p50 {load.p50_ms:.2f} ms"
            rates.append(told + in_words(shares))
        mib = usage(server.process.pid).mib
        print(f"server on {device}: ready after {server.ready_s:.1f} s, {mib:,.0f} MiB; {'; '.join(rates)}")


def training_seconds(images: np.ndarray, device: torch.device) -> float:
    """100 epochs over all training images."""
    config = TrainConfig(device=str(device))
    training = Training(config, device)
    pixels = flatten(images, device)
    began = time.perf_counter()
    for _ in range(100):
        run_epoch(training, config, pixels, SILENT)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--train", action="store_true", help="also train for 100 epochs")
    options = parser.parse_args()
    try:
        device = torch.device(choose_device(options.device, "torch"))
    except DeviceError as error:
        sys.exit(f"{error} Nothing was measured.")
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else f"torch on {device}", f"torch {torch.__version__}\n")
    bundle = store.load(store.find(ROOT / "model_store", "mnist"))
    cpu, other = Detector(bundle, "cpu", "onnx"), Detector(bundle, str(device), "torch")
    mnist = load_dataset("mnist", data_dir=options.data_dir)
    files = sorted((options.data_dir / "anomalies").glob("*.npz"))
    parity(cpu, other, {"mnist test": mnist.test_or_all.images, **{file.stem: np.load(file)["images"] for file in files}})
    speed({"ONNX Runtime, cpu": cpu, f"torch, {device}": other}, mnist.test_or_all.images)
    print()
    for name in dict.fromkeys(("cpu", str(device))):
        served(name, mnist.test_or_all.images)
    if options.train:
        with gpu_load() as shares:
            taken = training_seconds(mnist.train.images, device)
        print(f"\n100 epochs of 60,000 images: {taken:.1f} s{in_words(shares)}")


if __name__ == "__main__":
    main()
