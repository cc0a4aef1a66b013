"""Honest clients, which ask beside an attack: what they were answered, and how long that took.

One sends a 28x28 PNG about 40 times a second, one a photograph 8 times a second, both over a kept-open connection; a third asks
/livez once a second, each time over a new connection.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field

import numpy as np
from serve import bodies

from attacks.catalogue import KEY
from attacks.clients import request
from attacks.server import PORT, ROOT

_PATIENCE_S = 30.0
_KEY_HEADER = f"X-API-Key: {KEY.partition(':')[2]}"


@dataclass
class Honest:
    """The answers that one honest client got: (seconds, outcome), where the outcome is ok, refused or failed."""

    message: bytes
    pause_s: float
    keeps_connection: bool = True
    answers: list[tuple[float, str]] = field(default_factory=list)
    result: object = None  # of the first answer; each other must be the same

    async def run(self, seconds: float) -> None:
        self.answers = []
        until, line = time.monotonic() + seconds, None
        while time.monotonic() < until:
            began = time.perf_counter()
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    if line is None:
                        line = await asyncio.open_connection("127.0.0.1", PORT)
                    outcome, closes = await self._ask(*line)
            except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
                outcome, closes = "failed", True
            self.answers.append((time.perf_counter() - began, outcome))
            if line is not None and (closes or not self.keeps_connection):
                line[1].close()
                line = None
            await asyncio.sleep(self.pause_s)
        if line is not None:
            line[1].close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, bool]:
        writer.write(self.message)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
        status, closes = int(head[9:12]), b"connection: close" in head
        if status == 503 and b"retry-after:" in head:
            return "refused", closes
        return ("ok" if status == 200 and self._is_right(body) else "failed"), closes

    def _is_right(self, body: bytes) -> bool:
        """Compare the score with that of the first answer."""
        if not body.startswith(b"{"):
            return True
        score = (json.loads(body).get("results") or [{}])[0].get("score")
        self.result = score if self.result is None else self.result
        return bool(score is None or np.isclose(score, self.result, rtol=1e-4))

    def ms(self, percentile: float) -> float:
        """A percentile of all answers' duration in ms; failed requests count with the time until they failed."""
        return float(np.percentile([seconds for seconds, _ in self.answers] or [np.nan], percentile)) * 1000

    def share(self, outcome: str) -> float:
        return sum(each == outcome for _, each in self.answers) / max(1, len(self.answers))


def honest_clients() -> dict[str, Honest]:
    samples = ROOT / "tests" / "samples"
    kind, small = bodies()["raw"]
    photo = (samples / "two.jpg").read_bytes()
    return {
        "28x28": Honest(request("/score", kind, small, _KEY_HEADER), 0.025),
        "photo": Honest(request("/score", "image/jpeg", photo, _KEY_HEADER), 0.12),
        "probe": Honest(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", 1.0, keeps_connection=False),
    }


async def run_together(clients: dict[str, Honest], seconds: float) -> None:
    """Let all clients ask for `seconds`."""
    await asyncio.gather(*(client.run(seconds) for client in clients.values()))
