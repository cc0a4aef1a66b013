"""Query options and content negotiation: query string and Accept header in, checked values out."""

import difflib
import re
from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal, get_args
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import Request

from app.detection.imaging.decode import Preprocess
from app.serving.errors import OutOfRange, UnknownParameter
from app.serving.schemas import LEAST_RATE

_NUMBER = re.compile(r"[0-9.eE+-]{1,64}")  # float() alone takes spaces, underscores and the digits of every script
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")

_MAX_PARAMETERS = 20  # of a query string; reading 250 takes 0.3 ms
_MAX_ACCEPT_LENGTH = 1024  # longer ones are ignored: reading 32 KiB takes 34 ms

JSON, PNG, NPY = "application/json", "image/png", "application/x-npy"


def _check_number(value: Any) -> Any:  # noqa: ANN401
    """Reject text that is not a plain decimal number."""
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise ValueError("not a number")
    return value


Rate = Annotated[float, Field(ge=LEAST_RATE, lt=1, allow_inf_nan=False), BeforeValidator(_check_number)]


class Options(BaseModel):
    """The query options of /score, /embed, /reconstruct and /inspect. None: the default model, the model's own rate."""

    model_config = ConfigDict(frozen=True)

    alpha: Rate | None = None
    fdr: Rate | None = None
    preprocess: Preprocess = "auto"
    model: str | None = None
    watch: Literal["0", "1"] = "1"  # 0: neither counted in verdict metrics nor bet on by the drift monitor


DEFAULTS = Options()
_RATE_ERROR = f"must be a number between 0 and 1, both excluded, and not below {LEAST_RATE:g}."
_ERRORS = {
    "alpha": _RATE_ERROR,
    "fdr": _RATE_ERROR,
    "preprocess": f"must be one of: {', '.join(get_args(Preprocess))}.",
    "watch": "must be 0 or 1.",
}


def read_options(query: bytes, names: Collection[str] = tuple(Options.model_fields)) -> Options:
    """Options from a query string, which may hold those with these names.

    Raises:
        OutOfRange: a value is not valid, or both alpha and fdr are given.
        UnknownParameter: there is no such parameter.
    """
    try:
        values = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_PARAMETERS))
    except ValueError:
        raise OutOfRange(f"The query string has more than {_MAX_PARAMETERS} parameters.") from None
    check_names(values, names)
    try:
        options = Options.model_validate(values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise OutOfRange(f"{name} {_ERRORS[name]}") from None
    if options.alpha is not None and options.fdr is not None:
        raise OutOfRange("Ask for alpha or for fdr, not for both.")
    return options


def check_names(names: Iterable[str], known: Collection[str]) -> None:
    """Raise UnknownParameter, with the nearest name, for the first of `names` that is not among `known`."""
    for name in names:
        if name and name not in known:
            shown = "".join(filter(str.isprintable, name))[:64]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}."
            raise UnknownParameter(f"There is no parameter {shown!r}; {hint}")


def refuse_unknown_parameters(request: Request) -> None:
    """A dependency for routes whose parameters FastAPI reads. Raises UnknownParameter."""
    check_names(request.query_params, [field.alias for field in request.scope["route"].dependant.query_params])


def choose(accept: str, offers: tuple[str, ...]) -> str:
    """The offer that an Accept header prefers (RFC 9110, 12.5.1); the first offer if the header accepts none of them."""
    if not accept or accept == "*/*" or len(accept) > _MAX_ACCEPT_LENGTH:
        return offers[0]
    ranges = [_read_range(entry) for entry in accept.lower().split(",")]
    weights = [_weight(offer, ranges) for offer in offers]
    best = max(weights)
    return offers[weights.index(best)] if best > 0 else offers[0]


def _weight(offer: str, ranges: list[tuple[str, float]]) -> float:
    """The weight of the most specific media range that includes the offer, else 0."""
    for including in (offer, offer.partition("/")[0] + "/*", "*/*"):
        found = [weight for kind, weight in ranges if kind == including]
        if found:
            return max(found)
    return 0.0


def _read_range(entry: str) -> tuple[str, float]:
    """A media range and its weight: `image/png;q=0.5` -> ("image/png", 0.5); an invalid weight counts as 0."""
    kind, *parameters = (part.strip() for part in entry.split(";"))
    weight = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            weight = float(parameter[2:]) if _WEIGHT.fullmatch(parameter[2:]) else 0.0
    return kind, weight
