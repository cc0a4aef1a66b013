"""What a request asks for: query parameters and the Accept header in, checked values out."""

import math
from dataclasses import dataclass
from typing import get_args
from urllib.parse import parse_qsl

from app.detection.images import Preprocess
from app.serving.errors import OutOfRange

JSON, PNG, NPY = "application/json", "image/png", "application/x-npy"


@dataclass(frozen=True)
class Options:
    """The query parameters of /score, /reconstruct and /embed; None = as the model's card says."""

    alpha: float | None = None
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
    return Options(alpha=_rate("alpha", values.get("alpha")), preprocess=_preprocess(values.get("preprocess", "auto")))


def choose(accept: str, offers: tuple[str, ...]) -> str:
    """The offer that an Accept header prefers (RFC 9110, 12.5.1); the first where it says nothing we can serve."""
    if not accept or accept == "*/*":
        return offers[0]
    best, best_weight = offers[0], 0.0
    for offer in offers:
        weight = max((_weight(entry, offer) for entry in accept.lower().split(",")), default=0.0)
        if weight > best_weight:
            best, best_weight = offer, weight
    return best


def _rate(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < 1:
        raise OutOfRange(f"{name} must be a number between 0 and 1, both excluded.")
    return rate


def _preprocess(text: str) -> Preprocess:
    for known in get_args(Preprocess):
        if text == known:
            return known  # type: ignore[no-any-return]  # get_args forgets that these are the literals
    raise OutOfRange(f"preprocess must be one of: {', '.join(get_args(Preprocess))}.")


def _weight(entry: str, offer: str) -> float:
    kind, *parameters = (part.strip() for part in entry.split(";"))
    if kind not in (offer, "*/*", offer.partition("/")[0] + "/*"):
        return 0.0
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0
