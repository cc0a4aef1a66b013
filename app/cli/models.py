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
    """List every version of every detector in the store."""
    if as_json:
        typer.echo(json.dumps(_entries(store), indent=2))
        return
    from rich.markup import escape
    from rich.table import Table

    from app.cli.tables import console
    from app.detection.store import StoreError, folders, load_card, names

    table = Table("model", "version", "created", "scorer", "alpha", "threshold", "data", box=None)
    for name in names(store):
        shown = escape(options.printable(name))
        for folder in folders(store, name):
            version = int(folder.name)
            try:
                card = load_card(folder)
            except StoreError as error:
                table.add_row(shown, str(version), f"[red]not usable: {escape(options.printable(str(error)))}[/red]")
                continue
            created, data = card.created[:16].replace("T", " "), str(card.data.get("name", ""))
            created, data, scorer = (escape(options.printable(text)) for text in (created, data, card.scorer))
            table.add_row(shown, str(version), created, scorer, f"{card.alpha:g}", f"{card.threshold:.4g}", data)
    if not table.row_count:
        typer.echo(f"There is no detector in {store}; train one with `oddigit train`.", err=True)
        raise typer.Exit(2)
    console().print(table)


def _entries(store: Stores) -> list[dict[str, Any]]:
    """What the table shows, in full; a version that is not usable has its name, number and the reason alone."""
    from app.detection.store import StoreError, folders, load_card, names

    entries: list[dict[str, Any]] = []
    for name in names(store):
        for folder in folders(store, name):
            entry: dict[str, Any] = {"name": name, "version": int(folder.name)}
            try:
                card = load_card(folder)
            except StoreError as error:
                entries.append({**entry, "error": str(error)})
                continue
            entry |= {"created": card.created, "scorer": card.scorer, "alpha": card.alpha, "threshold": card.threshold}
            entries.append({**entry, "preprocess": card.preprocess, "data": card.data, "files": card.files})
    return entries
