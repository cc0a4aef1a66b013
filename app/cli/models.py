"""The command `models`."""

import json
from typing import Annotated, Any

import typer

from app.cli import options
from app.detection.store_path import Stores


def models(
    store: options.Store = options.DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for machines.")] = False,
) -> None:
    """List every version of every detector in the store, and which one is used where no version is named."""
    if as_json:
        typer.echo(json.dumps(_entries(store), indent=2))
        return
    from rich.table import Column, Table

    from app.cli.tables import cell, console
    from app.detection.store import StoreError, find, folders, load_card, names

    found = [folder for name in names(store) for folder in folders(store, name)]
    several = len({folder.parents[1] for folder in found}) > 1
    columns = ("model", "version", "in use", "created", "scorer", "alpha", "threshold", "data")
    table = Table(*columns, *([Column("folder", overflow="fold")] if several else []), box=None)
    for folder in found:
        name = folder.parent.name
        try:
            card = load_card(folder)
        except StoreError as error:
            table.add_row(cell(name), folder.name, "", f"[red]not usable: {cell(str(error))}[/red]")
            continue
        row = [cell(name), folder.name, "yes" if folder == find(store, name) else ""]
        created, data = card.created[:16].replace("T", " "), str(card.data.get("name", ""))
        row += [cell(created), cell(card.scorer), f"{card.alpha:g}", f"{card.threshold:.4g}", cell(data)]
        table.add_row(*row, *([cell(str(folder))] if several else []))
    if not table.row_count:
        typer.echo(f"There is no detector in {store}; train one with `oddigit train`.", err=True)
        raise typer.Exit(2)
    console().print(table)


def _entries(store: Stores) -> list[dict[str, Any]]:
    """The rows of the table with all fields; a version that is not usable has the reason in place of the card's fields."""
    from app.detection.store import StoreError, find, folders, load_card, names

    entries: list[dict[str, Any]] = []
    for name in names(store):
        for folder in folders(store, name):
            entry: dict[str, Any] = {"name": name, "version": int(folder.name), "folder": str(folder)}
            try:
                card = load_card(folder)
            except StoreError as error:
                entries.append({**entry, "in_use": False, "error": str(error)})
                continue
            entry["in_use"] = folder == find(store, name)
            entry |= {"created": card.created, "scorer": card.scorer, "alpha": card.alpha, "threshold": card.threshold}
            entries.append({**entry, "preprocess": card.preprocess, "data": card.data, "files": card.files})
    return entries
