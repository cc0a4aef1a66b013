"""Every knob of the server, read from ODDIGIT_* variables. Environment in, frozen `Settings` out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

PREFIX = "ODDIGIT_"
SHIPPED_STORE = Path(__file__).parents[2] / "model_store"

MIB = 2**20


class SettingsError(ValueError):
    """A variable is misspelt or out of range; the message names it."""


class Settings(BaseModel):
    """The server's configuration; each field is the variable ODDIGIT_<FIELD> in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: Path = Field(SHIPPED_STORE, description="Folder of trained detectors.")
    model: str = Field("mnist", description="Which detector of the store to serve.")
    version: int | None = Field(None, ge=1, description="Serve this version; unset, the highest.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    threads: int = Field(1, ge=1, le=256, description="Threads for one forward pass on the CPU.")
    max_body_bytes: int = Field(10 * MIB, ge=1, description="Largest request body; arrays have their own limit.")
    max_array_bytes: int = Field(128 * MIB, ge=1, description="Largest application/x-npy body.")
    max_bodies_bytes: int = Field(
        1024 * MIB, ge=1, description="Most bytes of all bodies under way, but for 64 KiB of each (with the serve command)."
    )
    max_images: int = Field(64, ge=1, description="Most images in one multipart request.")
    max_array_images: int = Field(100_000, ge=1, description="Most images in one array.")
    max_pictures: int = Field(
        1_000, ge=1, description="Most images that /reconstruct answers in JSON; one picture holds max_images."
    )
    max_pixels: int = Field(25_000_000, ge=784, description="Most pixels in one image, read from its header.")
    max_batch_size: int = Field(64, ge=1, description="Most images in one forward pass of waiting requests.")
    max_waiting: int = Field(512, ge=1, description="Most questions under way at once; more are refused with 503.")
    max_arrays: int = Field(4, ge=1, description="Most bodies larger than max_body_bytes under way at once.")
    deadline_ms: float = Field(5000.0, gt=0, description="Longest time a question may wait, from its last byte on.")
    max_connections: int = Field(4096, ge=1, description="Most connections at once (with the serve command).")
    head_timeout_s: float = Field(10.0, gt=0, description="Longest time for a request's head (with the serve command).")
    answer_timeout_s: float = Field(
        20.0, gt=0, description="Longest time a client may read nothing of its answer (with the serve command)."
    )
    drain_s: float = Field(1.0, ge=0, description="After SIGTERM: how long new work is refused before the server closes.")
    api_keys: SecretStr | None = Field(None, description="NAME:KEY entries, separated by commas; unset, no key is asked for.")
    api_keys_file: Path | None = Field(None, description="File with a NAME:KEY entry a line.")
    cors_origins: str = Field("", description="Origins that browsers may call from, separated by commas; * for all.")
    reload: bool = Field(True, description="Put new versions of the store in service as they appear.")
    drift_level: float = Field(100.0, gt=1, description="Drift is announced at this capital; false alarms: 1 in this many.")
    body_timeout_s: float = Field(20.0, gt=0, description="Longest time a client may take to send a body.")
    log_format: Literal["text", "json"] = Field("text", description="text for people, json for machines.")
    access_log: bool = Field(True, description="One log line a request.")


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from the variables that begin with ODDIGIT_; empty ones count as unset.

    Raises:
        SettingsError: a variable has no meaning here, or its value is not acceptable.
    """
    values = {
        name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX) and value
    }
    values.pop("data", None)  # where tests find the data sets; none of the server's business
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        variable = PREFIX + str(first["loc"][0]).upper()
        if first["type"] == "extra_forbidden":
            known = ", ".join(PREFIX + field.upper() for field in Settings.model_fields)
            raise SettingsError(f"{variable} is no setting. There are: {known}.") from None
        raise SettingsError(f"{variable} is not acceptable: {first['msg']}.") from None  # the value may be a secret
