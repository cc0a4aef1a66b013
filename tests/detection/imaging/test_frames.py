import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from strokes import encoded, stroke_images

from app.detection.imaging.frames import count_frames

IMAGES = [Image.fromarray(image) for image in stroke_images(3, seed=0)]


def several(kind):
    """A file of three pictures."""
    out = io.BytesIO()
    IMAGES[0].save(out, kind, save_all=True, append_images=IMAGES[1:], duration=100)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_pages_and_frames_are_counted(kind):
    """Three in an animation or a document, one in an ordinary file."""
    assert count_frames(several(kind)) == 3
    assert count_frames(encoded(IMAGES[0], kind)) == 1


def test_only_the_chunk_of_an_animation_counts():
    """Its name in a text is none; a large chunk before it does not hide it."""
    text, out = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text("Comment", "acTL is the chunk of APNG")
    IMAGES[0].save(out, "PNG", pnginfo=text)
    assert count_frames(out.getvalue()) == 1
    file, header = several("PNG"), 8 + 25
    large = struct.pack(">I4s", 6000, b"teXt") + bytes(6000 + 4)
    assert count_frames(file[:header] + large + file[header:]) == 3


@pytest.mark.parametrize("size", [28, 120])
@pytest.mark.parametrize("options", [{}, {"duration": 100}, {"transparency": 0}, {"comment": b"x" * 600}])
def test_frames_of_a_gif_need_no_extension(size, options):
    """A frame without duration and transparency has no graphic control extension; every frame may have its own colours."""
    frames = [Image.fromarray(image).resize((size, size)).convert("RGB").quantize(16) for image in stroke_images(3, seed=1)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], **options)
    assert count_frames(out.getvalue()) == 3


@pytest.mark.parametrize("kind", ["JPEG", "BMP"])
def test_other_types_have_one_picture(kind):
    """Files that cannot hold several."""
    assert count_frames(encoded(IMAGES[0], kind)) == 1


@given(st.binary(max_size=200), st.sampled_from([b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF0000WEBPVP8X", b"II*\x00", b"MM\x00*"]))
def test_any_bytes_have_a_count(data, start):
    """Damaged files are counted too, and a chain of pages that leads back to itself ends."""
    assert count_frames(start + data) >= 1
    assert count_frames(b"II*\x00\x08\x00\x00\x00" + bytes(2) + b"\x08\x00\x00\x00") == 1


@pytest.mark.parametrize("last", [0, 9])
def test_the_first_frame_of_a_gif_counts_whatever_precedes_it(last):
    """It may follow the colour table at once, whose last byte may be any."""
    table = bytes(3 * 256 - 1) + bytes([last])
    frame = b"\x21\xf9\x04\x00\x00\x00\x00\x00" + b"\x2c" + b"\x00" * 8 + b"\x00\x02\x01x\x00"
    assert count_frames(b"GIF89a\x1c\x00\x1c\x00\xf7\x00\x00" + table + 2 * frame + b"\x3b") == 2
