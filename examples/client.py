"""Ask a running server about images, with the standard library alone.

    python examples/client.py tests/samples/seven.png tests/samples/cat.png

ODDIGIT_URL names another server than http://127.0.0.1:8000, and ODDIGIT_KEY its API key.
"""

import base64
import json
import mimetypes
import os
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

URL = os.environ.get("ODDIGIT_URL", "http://127.0.0.1:8000")


def ask(endpoint: str, image: Path) -> dict:
    """Send one image file as the request's body and return the result for it. Raises HTTPError for every error status."""
    headers = {"Content-Type": mimetypes.guess_type(image.name)[0] or "image/png"}
    if key := os.environ.get("ODDIGIT_KEY"):
        headers["X-API-Key"] = key
    request = urllib.request.Request(URL + endpoint, image.read_bytes(), headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["results"][0]


def main() -> None:
    if len(sys.argv) == 1:
        sys.exit("Usage: python examples/client.py IMAGE...")
    for image in map(Path, sys.argv[1:]):
        score = ask("/score", image)
        verdict = "anomaly" if score["is_anomaly"] else "digit"
        print(f"{image.name}: {verdict}, score {score['score']:.2f}, p-value {score['p_value']:.4f}")

        embedding = ", ".join(f"{value:.2f}" for value in ask("/embed", image)["embedding"])
        print(f"  embedding: ({embedding})")

        picture = Path(f"{image.stem}-reconstruction.png")
        picture.write_bytes(base64.b64decode(ask("/reconstruct", image)["reconstruction"]))
        print(f"  reconstruction: {picture}")


try:
    main()
except urllib.error.HTTPError as error:
    if "json" not in error.headers.get("Content-Type", ""):
        sys.exit(f"{error.code} {error.reason}: the response is not JSON.")
    problem = json.load(error)  # RFC 9457: type, title, status, detail
    sys.exit(f"{problem['status']} {problem['title']}: {problem['detail']}")
except urllib.error.URLError as error:
    sys.exit(f"{URL} does not answer: {error.reason}. `make serve` starts a server.")
except (OSError, HTTPException, ValueError) as error:  # a file that is missing, an answer that is late, cut off or not JSON
    sys.exit(f"{type(error).__name__}: {error}")
