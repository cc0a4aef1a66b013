"""The command `models`."""

import json
from pathlib import Path
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

    entries = _entries(store)
    if not entries:
        typer.echo(f"There is no detector in {store}; train one with `oddigit train`.", err=True)
        raise typer.Exit(2)
    several = len({Path(entry["folder"]).parents[1] for entry in entries if "folder" in entry}) > 1
    columns = ("model", "version", "in use", "created", "scorer", "alpha", "threshold", "data")
    table = Table(*columns, *([Column("folder", overflow="fold")] if several else []), box=None)
    for entry in entries:
        row = [cell(entry["name"]), str(entry.get("version", ""))]
        if "error" in entry:
            table.add_row(*row, "", f"[red]not usable: {cell(entry['error'])}[/red]")
            continue
        row += ["yes" if entry["in_use"] else "", cell(entry["created"][:16].replace("T", " ")), cell(entry["scorer"])]
        row += [f"{entry['alpha']:g}", f"{entry['threshold']:.4g}", cell(str(entry["data"].get("name", "")))]
        table.add_row(*row, *([cell(entry["folder"])] if several else []))
    console().print(table)


def _entries(store: Stores) -> list[dict[str, Any]]:
    """An entry for each version, with the fields of its card. A version or detector that cannot be used has `error` instead."""
    from app.detection.store import StoreError, find, folders, load_card, names

    entries: list[dict[str, Any]] = []
    for name in names(store):
        try:
            in_use, found = find(store, name), folders(store, name)
        except StoreError as error:
            entries.append({"name": name, "in_use": False, "error": str(error)})
            continue
        for folder in found:
            entry: dict[str, Any] = {"name": name, "version": int(folder.name), "folder": str(folder)}
            try:
                card = load_card(folder)
            except StoreError as error:
                entries.append({**entry, "in_use": False, "error": str(error)})
                continue
            entry["in_use"] = folder == in_use
            entry |= {"created": card.created, "scorer": card.scorer, "alpha": card.alpha, "threshold": card.threshold}
            entries.append({**entry, "preprocess": card.preprocess, "data": card.data, "files": card.files})
    return entries
