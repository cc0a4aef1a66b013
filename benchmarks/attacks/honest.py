"""Honest clients, which ask beside an attack: what they were answered, and how long that took.

One sends a 28x28 PNG 40 times a second, one a photograph 8 times a second, both over connections that are kept open; a third
asks /livez once a second, each time over a new connection. Requests are sent at fixed times, whether those before them were
answered or not, as the requests of independent users are: a server that stands still for a second delays 40 small images,
not one.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field

import numpy as np
from common import LOST, PHOTO, post, read_answer, seven_png

from attacks.catalogue import KEY
from attacks.clients import Streams

_PATIENCE_S = 30.0  # for an answer
_KEY_HEADER = f"X-API-Key: {KEY.partition(':')[2]}"


@dataclass
class Honest:
    """The answers that one honest client got: (seconds, outcome), where the outcome is ok, refused or failed."""

    message: bytes
    period_s: float
    keeps_connection: bool = True
    answers: list[tuple[float, str]] = field(default_factory=list)
    result: object = None  # of the first answer; each other must be the same

    async def run(self, port: int, seconds: float) -> None:
        """Send the requests that are due within `seconds`; the answers replace those of an earlier run."""
        self.answers = []
        began, free = time.perf_counter(), list[Streams]()
        async with asyncio.TaskGroup() as tasks:
            for index in range(round(seconds / self.period_s)):
                due = began + index * self.period_s
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.create_task(self._send(port, due, free))
        for _, writer in free:
            writer.close()

    async def _send(self, port: int, due: float, free: list[Streams]) -> None:
        """Send one request over a free connection, or a new one, and note the answer."""
        outcome, closes = "failed", True
        while (streams := free.pop() if free else None) and streams[0].at_eof():  # the server has closed it
            streams[1].close()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                streams = streams or await asyncio.open_connection("127.0.0.1", port)
                outcome, closes = await self._ask(*streams)
        except LOST:
            pass
        self.answers.append((time.perf_counter() - due, outcome))
        if streams is not None and not closes and self.keeps_connection:
            free.append(streams)
        elif streams is not None:
            streams[1].close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, bool]:
        writer.write(self.message)
        answer = await read_answer(reader)
        if answer.is_refusal:
            return "refused", answer.closes
        return ("ok" if answer.status == 200 and self._is_right(answer.body) else "failed"), answer.closes

    def _is_right(self, body: bytes) -> bool:
        """Compare the score with that of the first answer."""
        if not body.startswith(b"{"):
            return True
        score = (json.loads(body).get("results") or [{}])[0].get("score")
        self.result = score if self.result is None else self.result
        return bool(score is None or np.isclose(score, self.result, rtol=1e-4))

    def ms(self, percentile: float) -> float:
        """A percentile of all answers' latency in ms; failed requests count with the time until they failed."""
        return float(np.percentile([seconds for seconds, _ in self.answers] or [np.nan], percentile)) * 1000

    def share(self, outcome: str) -> float:
        return sum(each == outcome for _, each in self.answers) / max(1, len(self.answers))


def honest_clients() -> dict[str, Honest]:
    return {
        "28x28": Honest(post("/score", "image/png", seven_png(), _KEY_HEADER), 1 / 40),
        "photo": Honest(post("/score", "image/jpeg", PHOTO.read_bytes(), _KEY_HEADER), 1 / 8),
        "probe": Honest(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", 1.0, keeps_connection=False),
    }


async def run_together(clients: dict[str, Honest], port: int, seconds: float) -> None:
    """Let all clients ask for `seconds`."""
    await asyncio.gather(*(client.run(port, seconds) for client in clients.values()))
