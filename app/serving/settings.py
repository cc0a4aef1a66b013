"""The server's settings, read from ODDIGIT_* variables. Environment in, frozen `Settings` out."""

import difflib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from ipaddress import ip_network
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from app.detection.store import StoreError, names
from app.detection.store_path import SHIPPED_STORE, Stores, read_stores

PREFIX = "ODDIGIT_"
MIB = 2**20
_NOT_SETTINGS = {"data"}  # ODDIGIT_DATA: where the tests find the data sets


class SettingsError(ValueError):
    """The value of a variable is not valid; the message names the variable."""


class Settings(BaseModel):
    """The server's configuration; each field is the variable ODDIGIT_<FIELD> in capitals."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    store: Stores = Field(
        Stores((SHIPPED_STORE,)),
        description="Folders of detectors, separated by colons; the first is written to, `shipped` is the installed one.",
    )
    model: str = Field("mnist", description="The detector that answers where a request names no model.")
    models: str = Field("", description="Other detectors to serve, separated by commas; unset, all of the store.")
    version: int | None = Field(
        None, ge=1, description="Serve this version of the default detector; unset, the highest of its first folder."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    runtime: Literal["auto", "onnx", "torch"] = Field("auto", description="auto, onnx (CPU) or torch.")
    max_version_bytes: int = Field(256 * MIB, ge=1, description="Most bytes of a version's files together.")
    threads: int = Field(1, ge=1, le=256, description="Threads for one forward pass on the CPU.")
    max_body_bytes: int = Field(
        10 * MIB, ge=1, description="Largest request body, but for arrays (.npy); at most ODDIGIT_MAX_BODIES_BYTES."
    )
    max_array_bytes: int = Field(
        128 * MIB, ge=1, description="Largest application/x-npy body; at most ODDIGIT_MAX_BODIES_BYTES."
    )
    max_bodies_bytes: int = Field(
        128 * MIB, ge=1, description="Most bytes of all request bodies together, without the first 16 KiB of each."
    )
    max_answers_bytes: int = Field(
        64 * MIB,
        ge=1,
        description="Most bytes of all response bodies over 64 KiB together. A larger body is sent when no other one is; "
        "/reconstruct as .npy refuses it with 413.",
    )
    max_images: int = Field(64, ge=1, description="Most parts of a form, images or not; most images of a BYTES tensor.")
    max_array_images: int = Field(100_000, ge=1, description="Most images in one array, or in a tensor of /v2.")
    max_pictures: int = Field(
        1_000,
        ge=1,
        description="Most images with pictures in a JSON response (/reconstruct, /inspect, /v2). "
        "A response as image/png has at most ODDIGIT_MAX_IMAGES.",
    )
    max_pixels: int = Field(
        25_000_000,
        ge=784,
        description="Most pixels in one image, read from its header; half as many in a WebP. 65,535 on a side.",
    )
    decoders: int = Field(2, ge=1, le=256, description="Processes of each worker that decode images.")
    max_batch_size: int = Field(64, ge=1, description="Most images in one forward pass of waiting requests.")
    max_waiting: int = Field(512, ge=1, description="Most requests in progress at once; more are refused with 503.")
    max_arrays: int = Field(4, ge=1, description="Most bodies larger than max_body_bytes in progress at once.")
    deadline_ms: float = Field(5000.0, gt=0, description="Longest time a request may wait once its body is complete.")
    max_connections: int = Field(4096, ge=1, description="Most connections at once (with the serve command).")
    head_timeout_s: float = Field(10.0, gt=0, description="Longest time for a request's head (with the serve command).")
    body_timeout_s: float = Field(20.0, gt=0, description="Longest time in which nothing of a body is received.")
    answer_timeout_s: float = Field(
        20.0,
        gt=0,
        description="Longest time in which a client reads nothing of its response, or less than 16 KiB/s (serve command).",
    )
    keep_alive_s: float = Field(75.0, gt=0, description="Longest time an idle connection stays open (with the serve command).")
    drain_s: float = Field(
        5.0, ge=0, description="After SIGTERM: how long requests are still answered, while /readyz says 503."
    )
    trusted_proxies: str = Field(
        "", description="Addresses or networks whose X-Forwarded-For and -Proto are used, separated by commas; * for all."
    )
    root_path: str = Field(
        "", description="Path prefix under which a reverse proxy publishes the server, for instance /digits."
    )
    api_keys: SecretStr | None = Field(
        None,
        description="NAME:KEY entries, separated by commas, KEY of at least 16 ASCII characters; unset, none is needed.",
    )
    api_keys_file: Path | None = Field(None, description="File with a NAME:KEY entry a line, as in ODDIGIT_API_KEYS.")
    cors_origins: str = Field("", description="Origins that browsers may call from, separated by commas; * for all.")
    reload: bool = Field(True, description="Put new versions of the store in service as they appear.")
    drift_level: float = Field(
        100.0,
        gt=1,
        le=1e12,
        description="/drift raises an alarm at this capital; normal traffic reaches it with a probability of at most 1 / this.",
    )
    log_format: Literal["text", "json"] = Field("text", description="text for people, json for machines.")
    access_log: bool = Field(True, description="One log line a request.")

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: str) -> str:
        for entry in entries(value) if value != "*" else ():
            try:
                ip_network(entry)
            except ValueError:
                raise ValueError(f"{entry} is neither an IP address nor a network, as 10.0.0.0/8") from None
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: str) -> str:
        for entry in entries(value):
            if entry not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", entry):
                raise ValueError(f"{entry} is not an origin; write scheme and host, for instance https://example.org")
        return value

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, value: str) -> str:
        if not re.fullmatch(r"(/[\w.~!$&'()*+,;=:@%-]+)*", value, re.ASCII):
            raise ValueError("it must be a URL's path that begins with a slash and does not end with one, for instance /digits")
        return value

    @cached_property
    def body_limit(self) -> int:
        """The largest request body in bytes. It is at most max_bodies_bytes: a larger body could never be received."""
        return min(self.max_body_bytes, self.max_bodies_bytes)

    @cached_property
    def array_limit(self) -> int:
        """As `body_limit`, for an array."""
        return min(self.max_array_bytes, self.max_bodies_bytes)

    def serves(self, name: str) -> bool:
        """Whether the detector `name` of the store is to be served."""
        return not self.models or name in (self.model, *entries(self.models))


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from the variables that begin with ODDIGIT_; empty and unknown ones are ignored.

    Raises:
        SettingsError: a value is not valid.
    """
    try:
        values = _values(environment)
        return Settings.model_validate({**values, "store": read_stores(values.get("store", ""), environment)})
    except ValidationError as error:
        first = error.errors()[0]
        variable = PREFIX + str(first["loc"][0]).upper()
        reason = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{variable} is not acceptable: {reason}.") from None  # the value may be a secret


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each ODDIGIT_* variable that is not a setting, with the nearest setting.

    They are not errors, because Kubernetes sets ODDIGIT_PORT and others in every pod beside a Service named `oddigit`.
    """
    sentences = []
    for field in sorted(_values(environment).keys() - Settings.model_fields.keys() - _NOT_SETTINGS):
        near = difflib.get_close_matches(field, Settings.model_fields, n=1)
        hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else "."
        sentences.append(f"{PREFIX}{field.upper()} is not a setting and has no effect{hint}")
    return sentences


def missing_in_store(settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """A sentence for each folder of ODDIGIT_STORE and detector of ODDIGIT_MODELS that does not exist.

    They may be made later, so this is not an error.
    """
    listed = settings.store.roots if environment.get(f"{PREFIX}STORE") else ()
    missing = [root for root in listed if not os.path.isdir(root)]  # noqa: PTH112 - a Path raises PermissionError
    sentences = [f"The store {root} does not exist; its detectors are served once it does." for root in missing]
    with suppress(StoreError):  # the server reports it when it loads the models
        known = names(settings.store)
        unknown = [name for name in entries(settings.models) if name not in known]
        sentences += [f"There is no detector {name} in the store; it is served once there is." for name in unknown]
    return sentences


def entries(value: str) -> list[str]:
    """The entries of a list that is separated by commas."""
    return [entry.strip() for entry in value.split(",") if entry.strip()]


def _values(environment: Mapping[str, str]) -> dict[str, str]:
    """Field name -> value of the ODDIGIT_* variables that are not empty."""
    return {
        name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX) and value
    }
