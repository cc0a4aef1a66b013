"""The commands `push` and `pull`: versions of detectors between stores, as archives with checksums at an address."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import options

if TYPE_CHECKING:
    from app.cli.addresses import Address

Target = Annotated[
    str, typer.Argument(help="A folder, or an address of fsspec, for instance s3://bucket/detectors.", metavar="ADDRESS")
]

_MAX_DIGEST_BYTES = 1024


def push(
    address: Target,
    store: options.Store = options.DEFAULT_STORE,
    model: options.Model = "mnist",
    version: options.Version = None,
) -> None:
    """Copy one version of a detector, as an archive with its checksum, to a folder or an address of fsspec."""
    from app.cli.addresses import Address
    from app.detection.archive import pack
    from app.detection.bundle import sha256
    from app.detection.store import find

    folder = find(store, model, version)
    target, archive = Address(address), f"{model}-{folder.name}.zip"
    data = pack(folder)
    target.write(archive, data)
    target.write(f"{archive}.sha256", f"{sha256(data)}  {archive}\n".encode())  # last: it says that the archive is complete
    typer.echo(f"Pushed {model}/{folder.name} to {address.rstrip('/')}/{archive}, sha256 {sha256(data)}")


def pull(
    address: Target,
    store: options.Store = options.DEFAULT_STORE,
    model: options.Model = "mnist",
    version: Annotated[int | None, typer.Option(min=1, help="The detector's version; unset, the highest at ADDRESS.")] = None,
    digest: Annotated[
        str | None, typer.Option("--sha256", help="The checksum that `push` printed; unset, the one beside the archive.")
    ] = None,
) -> None:
    """Copy one version of a detector from a folder or an address of fsspec into the store, after its checksums are verified."""
    from app.cli.addresses import Address, AddressError
    from app.detection.archive import unpack
    from app.detection.bundle import MAX_VERSION_BYTES, sha256

    source, own = Address(address), store.own
    archive = _find(source, address, model, version)
    if digest is not None and not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise AddressError("--sha256 must be the 64 hexadecimal digits that `push` printed.")
    expected = digest or source.read(f"{archive}.sha256", _MAX_DIGEST_BYTES).decode(errors="replace").partition(" ")[0]
    data = source.read(archive, MAX_VERSION_BYTES)
    if sha256(data) != expected.lower():
        if digest:
            raise AddressError(f"{archive} is not the archive of --sha256: its checksum differs.")
        raise AddressError(f"{archive} is truncated or altered: its checksum differs. Push it again.")
    folder = unpack(data, own)
    typer.echo(f"Pulled {folder.parent.name}/{folder.name} into {own}")


def _find(source: "Address", address: str, model: str, version: int | None) -> str:
    """The name of the archive of this version, or of the highest. Raises AddressError where there is none."""
    from app.cli.addresses import AddressError

    pattern = re.compile(re.escape(model) + r"-([1-9][0-9]*)\.zip\.sha256")
    found = sorted(int(match[1]) for name in source.names() if (match := pattern.fullmatch(name)))
    if version is None and found:
        version = found[-1]
    if version not in found:
        there = f"; there is {', '.join(map(str, found))}" if found else ""
        raise AddressError(f"There is no {f'version {version}' if version else 'version'} of {model!r} at {address}{there}.")
    return f"{model}-{version}.zip"
