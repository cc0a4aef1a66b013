"""What it takes to score a number of images a day: `python benchmarks/growing.py [--images-a-day 1e9] [--peak 3] ...`.

The first figures are measured (docs/benchmarks.md says how); the others are assumptions, each of which is an option. Prints
the tables of docs/growing.md.
"""

import argparse
from dataclasses import dataclass, fields
from typing import NamedTuple

DAY_S = 86_400
GB = 1e9


class Way(NamedTuple):
    """A way to send images, with what was measured of it."""

    name: str
    images_per_core_s: float  # of one core that does nothing else
    request_bytes: float  # of one image, with its share of the request's head
    result_bytes: float  # of one image: response, or row of the Parquet file
    objects: float = 0.0  # that are read from the object store for one image
    most_time: str = "HTTP"  # what most of the core's time goes into

    @property
    def network_bytes(self) -> float:
        """Of one image in the busier direction."""
        return max(self.request_bytes, self.result_bytes)


# Rates: benchmarks/scaling.py, one worker on one core; of `score --to`, 246 us of CPU time for an image (benchmarks/bulk.py).
# Bytes: MNIST's PNG files have 274 on average, tests/samples/two.jpg 14,591, a row 39; head of a request about 200, answer 500.
WAYS = (
    Way("28x28 PNG, one a request", 3_536, 474, 500),
    Way("arrays of 1,000 images", 43_186, 784, 170, most_time="the network"),
    Way("photograph, one a request", 63, 14_791, 500, most_time="decoding"),
    Way("`score --to`, 28x28 PNG, one an object", 4_065, 274, 39, objects=1, most_time="decoding"),
    Way("`score --to`, 28x28 PNG, 2,000 an object", 4_065, 274, 39, objects=1 / 2_000, most_time="decoding"),
)


@dataclass(frozen=True)
class Assumptions:
    """What is not measured. Prices are in US dollars, of no provider in particular."""

    images_a_day: float = 1e9
    peak: float = 3.0  # the busiest second against the mean; bulk jobs have none
    utilisation: float = 0.6  # of a core in the busiest second
    cores: int = 16  # of a machine
    network_gbit_s: float = 10.0  # of a machine
    core_hour: float = 0.04
    million_reads: float = 0.40  # GET requests of an object store
    gb_month: float = 0.023  # of an object store
    keep_days: float = 30.0  # results


def rates(ways: tuple[Way, ...], assumed: Assumptions) -> str:
    """Images a second of a core, a machine and ten machines."""
    lines = [
        f"| way | one core | one machine ({assumed.cores} cores) | ten machines | ten machines a day | most time goes into |"
    ]
    lines.append("|---|---:|---:|---:|---:|---|")
    for way in ways:
        machine = min(way.images_per_core_s * assumed.cores, _network_limit(way, assumed))
        cells = (f"{rate:,.0f}/s" for rate in (way.images_per_core_s, machine, 10 * machine))
        lines.append(f"| {way.name} | {' | '.join(cells)} | {10 * machine * DAY_S / 1e9:,.1f} billion | {way.most_time} |")
    return "\n".join(lines)


def needs(ways: tuple[Way, ...], assumed: Assumptions) -> str:
    """Cores, machines, network, storage and cost."""
    mean = assumed.images_a_day / DAY_S
    lines = ["| way | cores | machines | network, Gbit/s | results, GB | cores, $/day | reads, $/day | storage, $/day |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for way in ways:
        bulk = way.objects > 0
        rate = mean if bulk else mean * assumed.peak
        cores = rate / way.images_per_core_s / (1 if bulk else assumed.utilisation)
        gbit = rate * way.network_bytes * 8 / GB
        machines = max(cores / assumed.cores, gbit / assumed.network_gbit_s)
        kept = assumed.images_a_day * way.result_bytes * assumed.keep_days / GB if bulk else 0.0
        cells = (
            f"{cores:,.0f}",
            f"{machines:,.1f}",
            f"{gbit:,.2f}",
            f"{kept:,.0f}" if bulk else "",
            f"{cores * 24 * assumed.core_hour:,.0f}",
            f"{assumed.images_a_day * way.objects / 1e6 * assumed.million_reads:,.2f}" if bulk else "",
            f"{kept * assumed.gb_month / 30:,.2f}" if bulk else "",
        )
        lines.append(f"| {way.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _network_limit(way: Way, assumed: Assumptions) -> float:
    """Images a second that fit through the network of a machine."""
    return assumed.network_gbit_s * GB / 8 / way.network_bytes


def assumptions(assumed: Assumptions) -> str:
    """The assumptions in one line."""
    return ", ".join(f"{field.name} {getattr(assumed, field.name):,g}" for field in fields(assumed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Assumptions):
        parser.add_argument("--" + field.name.replace("_", "-"), type=type(field.default), default=field.default)
    assumed = Assumptions(**vars(parser.parse_args()))
    print(rates(WAYS, assumed), needs(WAYS, assumed), f"Assumed: {assumptions(assumed)}.", sep="\n\n")


if __name__ == "__main__":
    main()
