"""What a request asks for: query parameters and the Accept header in, checked values out."""

import math
import re
from dataclasses import dataclass
from typing import get_args
from urllib.parse import parse_qsl

from app.detection.imaging.decode import Preprocess
from app.serving.errors import OutOfRange

_NUMBER = re.compile(r"[0-9.eE+-]{1,64}")  # float() alone takes spaces, underscores and the digits of every script
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
LEAST_RATE = 1e-9  # no calibration is large enough for less

JSON, PNG, NPY = "application/json", "image/png", "application/x-npy"


@dataclass(frozen=True)
class Options:
    """The query parameters of /score, /reconstruct and /embed; None = as the model's card says."""

    alpha: float | None = None
    fdr: float | None = None
    preprocess: Preprocess = "auto"


DEFAULTS = Options()


def read_options(query: bytes) -> Options:
    """Options from a query string; parameters that are not known are left alone.

    Raises:
        OutOfRange: a value is not acceptable.
    """
    if not query:
        return DEFAULTS
    values = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    alpha, fdr = _rate("alpha", values.get("alpha")), _rate("fdr", values.get("fdr"))
    if alpha is not None and fdr is not None:
        raise OutOfRange("Ask for alpha or for fdr, not for both.")
    return Options(alpha, fdr, _preprocess(values.get("preprocess", "auto")))


def choose(accept: str, offers: tuple[str, ...]) -> str:
    """The offer that an Accept header prefers (RFC 9110, 12.5.1); the first where it says nothing that can be served."""
    if not accept or accept == "*/*":
        return offers[0]
    ranges = [_read_range(entry) for entry in accept.lower().split(",")]
    weights = [_weight(offer, ranges) for offer in offers]
    best = max(weights)
    return offers[weights.index(best)] if best > 0 else offers[0]


def _rate(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        rate = float(text) if _NUMBER.fullmatch(text) else math.nan
    except ValueError:
        rate = math.nan
    return check_rate(name, rate)


def check_rate(name: str, rate: float) -> float:
    """The rate itself. Raises OutOfRange where it is none."""
    if not LEAST_RATE <= rate < 1:
        raise OutOfRange(f"{name} must be a number between 0 and 1, both excluded, and not below {LEAST_RATE:g}.")
    return rate


def _preprocess(text: str) -> Preprocess:
    for known in get_args(Preprocess):
        if text == known:
            return known  # type: ignore[no-any-return]  # get_args forgets that these are the literals
    raise OutOfRange(f"preprocess must be one of: {', '.join(get_args(Preprocess))}.")


def _weight(offer: str, ranges: list[tuple[str, float]]) -> float:
    """The weight that the most specific range which covers the offer gives it; 0 where none does."""
    for covering in (offer, offer.partition("/")[0] + "/*", "*/*"):
        found = [weight for kind, weight in ranges if kind == covering]
        if found:
            return max(found)
    return 0.0


def _read_range(entry: str) -> tuple[str, float]:
    """A media range and its weight: `image/png;q=0.5` -> ("image/png", 0.5); a weight that is none counts as 0."""
    kind, *parameters = (part.strip() for part in entry.split(";"))
    weight = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            weight = float(parameter[2:]) if _WEIGHT.fullmatch(parameter[2:]) else 0.0
    return kind, weight
