"""Where detectors are looked for: the user's own store, which is written to, and the one that the program comes with."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_APP = Path(__file__).parents[1]
SHIPPED_WORD = "shipped"  # stands for SHIPPED_STORE in ODDIGIT_STORE
SHIPPED_STORE = next(
    (each for each in (_APP / "model_store", _APP.parent / "model_store") if each.is_dir()), _APP / "model_store"
)


class NoOwnStore(RuntimeError):
    """There is no store that new versions may be written to; the message says how to name one."""


@dataclass(frozen=True)
class Stores:
    """Stores in the order in which a detector is looked for. A name of an earlier one hides the same name of a later one."""

    roots: tuple[Path, ...]
    read_only: bool = field(default=False, compare=False)  # True: there is no home folder, and the shipped store is only read

    @property
    def own(self) -> Path:
        """The store that new versions are written to. Raises NoOwnStore."""
        if self.read_only:
            raise NoOwnStore(
                "New versions are written to the home folder, but neither HOME nor XDG_DATA_HOME is set. Set one, or name a "
                "folder with --store or ODDIGIT_STORE."
            )
        return self.roots[0]

    def __str__(self) -> str:
        return " or ".join(map(str, self.roots))


def read_stores(text: str, environment: Mapping[str, str]) -> Stores:
    """The stores that ODDIGIT_STORE lists, separated by colons; for an empty list, the user's own and the shipped one."""
    names = [name for name in text.split(";" if sys.platform == "win32" else ":") if name]
    if not names:
        own = user_store(environment)
        return Stores((own, SHIPPED_STORE)) if own else Stores((SHIPPED_STORE,), read_only=True)
    return Stores(tuple(SHIPPED_STORE if name == SHIPPED_WORD else Path(name) for name in names))


def user_store(environment: Mapping[str, str]) -> Path | None:
    """`oddigit` in the data folder of the platform (XDG on Linux); None for a user without a home."""
    if sys.platform == "win32":
        base = environment.get("LOCALAPPDATA", "")
    elif sys.platform == "darwin":
        base = f"{environment['HOME']}/Library/Application Support" if environment.get("HOME") else ""
    else:
        base = environment.get("XDG_DATA_HOME", "") or (
            f"{environment['HOME']}/.local/share" if environment.get("HOME") else ""
        )
    return Path(base) / "oddigit" if base else None
