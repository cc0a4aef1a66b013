"""For the fuzzer that reads the API's own description: what a good body of each type is, which JSON Schema cannot say."""

import schemathesis
from hypothesis import strategies as st
from PIL import Image
from strokes import encoded, npy, stroke_images

IMAGES = stroke_images(4, seed=0)

for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
    bodies = [encoded(Image.fromarray(image), kind) for image in IMAGES]
    schemathesis.openapi.media_type(f"image/{kind.lower()}", st.sampled_from(bodies))
schemathesis.openapi.media_type("application/x-npy", st.sampled_from([npy(IMAGES), npy(IMAGES[0])]))
