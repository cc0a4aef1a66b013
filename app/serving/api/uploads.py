"""Uploads: a request in, prepared images out, in any of the three forms that the contract allows."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from app.detection.detector import stack_features
from app.detection.imaging.decode import Preprocess, decode_array, decode_image
from app.detection.imaging.errors import ImageError
from app.detection.imaging.file_headers import decodes_quickly
from app.detection.imaging.preprocess import PreprocessedImage
from app.serving.api.query import NPY
from app.serving.api.responses import ImageInfo
from app.serving.errors import InvalidBody, Problem, UnsupportedType, from_image_error
from app.serving.http.body import Part, media_type, parse_form, read_body
from app.serving.http.exchange import EXCHANGE
from app.serving.settings import Settings

Made = TypeVar("Made")

FORM = "multipart/form-data"
IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif", "image/tiff"})
_UNDECLARED = ("", "application/octet-stream")  # what clients say of a form's part when they say nothing
_INLINE_BYTES = 2048  # of a form
_LIGHT_BYTES = 256 * 1024  # a photograph from a form; more than this, and it queues with the large ones


@dataclass(frozen=True)
class Upload:
    """What a request holds: prepared images, or an array as it came; and the images among others that failed."""

    shown: Sequence[ImageInfo]
    prepared: Sequence[PreprocessedImage] = ()
    array: NDArray[np.uint8] | None = None  # [N, S, S]
    failed: dict[int, tuple[str, Problem]] = field(default_factory=dict)  # by position in the upload

    @property
    def images(self) -> NDArray[np.uint8]:
        """The prepared images, [n, S, S]."""
        if len(self.prepared) == 1:
            return self.prepared[0].image[None]
        return np.stack([prepared.image for prepared in self.prepared])

    @property
    def features(self) -> NDArray[np.float32] | None:
        """What the preparations saw, [n, K]; NaN for untouched images, None where all are."""
        return stack_features([prepared.features for prepared in self.prepared])


class Body(NamedTuple):
    """A request's complete body and what it is declared to be."""

    kind: str  # media type, one of those that are accepted
    content_type: str  # the whole header
    data: bytes


class Uploads:
    """Reads uploads under the limits of the settings; large images are decoded on threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._light = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode-light")
        self._heavy = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode-heavy")
        self.off_loop = 0  # bodies that the threads have to decode

    async def receive(self, request: Request, headers: Mapping[bytes, bytes]) -> Body:
        """The request's body. Raises UnsupportedType, TooLarge, DeadlinePassed or InvalidBody, before it is read."""
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        kind = media_type(content_type)
        if kind not in IMAGE_TYPES and kind not in (FORM, NPY):
            raise UnsupportedType(f"{kind or 'No content type'} is not accepted; send an image, multipart/form-data or {NPY}.")
        settings = self._settings
        limit = settings.max_array_bytes if kind == NPY else settings.max_body_bytes
        exchange = request.scope.get("extensions", {}).get(EXCHANGE)
        complete = exchange is not None and exchange.complete
        data = await read_body(request.receive, headers, limit=limit, timeout_s=settings.body_timeout_s, complete=complete)
        if not data:
            raise InvalidBody("The body is empty.")
        return Body(kind, content_type, data)

    async def decode(self, body: Body, preprocess: Preprocess, size: int) -> Upload:
        """The body's images, size x size. Raises the Problem that the contract names for a body nothing can be made of."""
        if body.kind == FORM:
            return await self._form(body, preprocess, size)
        try:
            if body.kind == NPY:
                array = decode_array(body.data, max_images=self._settings.max_array_images, size=size)
                return Upload([ImageInfo(str(index)) for index in range(len(array))], array=array)
            decode = partial(self._decode, preprocess=preprocess, size=size)
            inline = decodes_quickly(body.data)  # quicker than to hand it to a thread and back
            prepared = decode(body.data) if inline else await self._off_loop(len(body.data), decode, body.data)
        except ImageError as error:
            raise from_image_error(error) from None
        return Upload([ImageInfo("image", prepared.preprocess, prepared.warnings)], [prepared])

    def close(self) -> None:
        self._light.shutdown(wait=False, cancel_futures=True)
        self._heavy.shutdown(wait=False, cancel_futures=True)

    async def _form(self, body: Body, preprocess: Preprocess, size: int) -> Upload:
        parse = partial(parse_form, body.data, body.content_type, max_parts=self._settings.max_images)
        until = time.monotonic() + self._settings.deadline_ms / 1000
        small = len(body.data) <= _INLINE_BYTES
        parts = parse() if small else await self._off_loop(len(body.data), parse)
        work = partial(self._decode_parts, parts, preprocess, size, until)
        inline = small and len(parts) == 1 and decodes_quickly(parts[0].data)
        outcomes = work() if inline else await self._off_loop(len(body.data), work)
        failed = {
            index: (part.name, outcome)
            for index, (part, outcome) in enumerate(zip(parts, outcomes, strict=True))
            if isinstance(outcome, Problem)
        }
        if len(failed) == len(parts):
            raise refusal([problem for _, problem in failed.values()])
        good = [(part, out) for part, out in zip(parts, outcomes, strict=True) if not isinstance(out, Problem)]
        shown = [ImageInfo(part.name, prepared.preprocess, prepared.warnings) for part, prepared in good]
        return Upload(shown, [prepared for _, prepared in good], failed=failed)

    def _decode_parts(
        self, parts: list[Part], preprocess: Preprocess, size: int, until: float
    ) -> "list[PreprocessedImage | Problem]":
        outcomes = []
        for part in parts:
            if time.monotonic() > until:
                raise TimeoutError
            outcomes.append(self._decode_part(part, preprocess, size))
        return outcomes

    def _decode_part(self, part: Part, preprocess: Preprocess, size: int) -> PreprocessedImage | Problem:
        if part.content_type not in IMAGE_TYPES and part.content_type not in _UNDECLARED:
            return UnsupportedType(f"{part.name}: {part.content_type} is not accepted; send an image.")
        try:
            return self._decode(part.data, preprocess=preprocess, size=size)
        except ImageError as error:
            return from_image_error(error, part.name)

    def _decode(self, data: bytes, *, preprocess: Preprocess, size: int) -> PreprocessedImage:
        return decode_image(data, preprocess=preprocess, max_pixels=self._settings.max_pixels, size=size)

    async def _off_loop(self, size: int, work: Callable[..., Made], *arguments: object) -> Made:
        """Run `work` on a thread; what is large waits behind what is large, and holds up nobody else.

        Raises:
            TimeoutError: its turn came after the deadline; nothing was done for it any more.
        """
        lane = self._light if size <= _LIGHT_BYTES else self._heavy
        until = time.monotonic() + self._settings.deadline_ms / 1000
        self.off_loop += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(lane, _in_time, until, work, *arguments)
        finally:
            self.off_loop -= 1


def _in_time(until: float, work: Callable[..., Made], *arguments: object) -> Made:
    if time.monotonic() > until:
        raise TimeoutError
    return work(*arguments)


def refusal(problems: list[Problem]) -> Problem:
    """One problem for a request in which nothing could be decoded: the images' own where they agree, else a bad body."""
    if len(problems) == 1:
        return problems[0]
    kind = type(problems[0]) if len({type(problem) for problem in problems}) == 1 else InvalidBody
    return kind(f"None of the {len(problems)} images could be read. The first: {problems[0].detail}")
