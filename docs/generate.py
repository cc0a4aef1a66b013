"""Writes the parts of the documentation that follow from the code: tables of settings, endpoints, problems and options.

    python docs/generate.py

Each part stands in a page of docs/ between `<!-- NAME -->` and `<!-- end -->`. tests/test_docs.py compares them with the code.
"""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.cli.commands import cli
from app.detection.store import find
from app.detection.store_path import SHIPPED_STORE, Stores
from app.main import create_app
from app.serving.errors import PROBLEMS
from app.serving.settings import PREFIX, Settings

DOCS = Path(__file__).parent
PICTURES = ("latent.png", "errors.png", "loss.png", "reconstructions_100.png")  # of the shipped version's report


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


def settings() -> str:
    """Each setting with its default and its description."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else str(field.default)
        default = "your data folder and `shipped`" if field.default == Stores((SHIPPED_STORE,)) else default
        default = default.lower() if isinstance(field.default, bool) else default
        rows.append((f"`{PREFIX}{name.upper()}`", default, field.description or ""))
    return table(("variable", "default", "what it does"), rows)


def openapi() -> dict[str, Any]:
    """The OpenAPI document of the server."""
    app: Any = create_app(Settings(reload=False, access_log=False))
    document: dict[str, Any] = app.app.openapi()
    return document


def endpoints() -> str:
    """Each endpoint with the first sentence of its description."""
    rows = []
    for path, item in openapi()["paths"].items():
        for method, operation in item.items():
            sentence = operation.get("description", operation["summary"]).split("\n\n")[0]
            statuses = ", ".join(status for status in operation["responses"] if status != "200")
            rows.append((f"`{method.upper()} {path}`", sentence, statuses))
    return table(("endpoint", "what it answers", "other statuses"), rows)


def parameters() -> str:
    """The query parameters of /score, which has all of them."""
    rows = []
    for parameter in openapi()["paths"]["/score"]["post"]["parameters"]:
        schema = parameter["schema"]
        values = ", ".join(f"`{value}`" for value in schema["enum"]) if "enum" in schema else schema["type"]
        rows.append((f"`{parameter['name']}`", values, parameter["description"]))
    return table(("parameter", "values", "meaning"), rows)


def problems() -> str:
    """Each problem type with its status and meaning."""
    rows = [(str(problem.status), f"`{problem.type}`", problem.__doc__ or "") for problem in PROBLEMS]
    return table(("status", "type", "meaning"), rows)


def commands() -> str:
    """Each command with its description and its options."""
    parts = []
    for name, command in typer.main.get_command(cli).commands.items():  # type: ignore[attr-defined]
        rows = [_option(parameter) for parameter in command.params]
        parts += [f"## oddigit {name}", command.help, table(("argument or option", "default", "meaning"), rows)]
    return "\n\n".join(parts)


def _option(parameter: Any) -> tuple[str, str, str]:  # noqa: ANN401 - click's types are not typer's
    shown = parameter.show_default if isinstance(getattr(parameter, "show_default", None), str) else parameter.default
    required = "required" if parameter.required else ""
    default = required or ("" if shown is None or shown is False or callable(shown) else str(getattr(shown, "value", shown)))
    name = ", ".join(parameter.opts) if parameter.param_type_name == "option" else parameter.name.upper()
    kind, text = parameter.type_descriptor.annotation, parameter.help or ""
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    missing = choices and not all(choice in text for choice in choices)
    return f"`{name}`", default, f"{text} One of {', '.join(choices)}." if missing else text


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "configuration.md": {"settings": settings},
    "http-api.md": {"endpoints": endpoints, "parameters": parameters, "problems": problems},
    "command-line.md": {"commands": commands},
}


def with_parts(page: str) -> str:
    """The text of a page of docs/ with its parts written anew."""
    text = (DOCS / page).read_text()
    for name, make in PARTS[page].items():
        part = f"<!-- {name} -->\n\n{make()}\n\n<!-- end -->"
        pattern = rf"<!-- {name} -->\n.*?<!-- end -->"
        assert re.search(pattern, text, re.DOTALL), f"{page} has no place for {name}"
        text = re.sub(pattern, lambda _, part=part: part, text, flags=re.DOTALL)
    return text


def main() -> None:
    for page in PARTS:
        (DOCS / page).write_text(with_parts(page))
    report = find(SHIPPED_STORE, "mnist") / "report"
    for picture in PICTURES:
        shutil.copy(report / picture, DOCS / "images" / picture)


if __name__ == "__main__":
    main()
