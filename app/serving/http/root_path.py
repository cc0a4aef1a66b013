"""The path prefix under which a reverse proxy publishes the server."""

from starlette.types import Scope


def normalise_root_path(scope: Scope, configured: str = "") -> tuple[Scope, str]:
    """The scope with its root path exactly once in front of `path`, and the path below it.

    A proxy may strip the prefix or keep it, and uvicorn's --root-path puts it in front of whatever was sent.
    """
    root, route = configured or scope["root_path"].rstrip("/"), scope["path"]
    while root and (route == root or route.startswith(root + "/")):
        route = route[len(root) :] or "/"
    return {**scope, "root_path": root, "path": root + route}, route
