"""Run the detector in ONNX Runtime alone: `oddigit export --to detector.onnx` writes the file that this reads."""

import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
images = np.stack([np.asarray(Image.open(path).convert("L")) for path in sys.argv[2:]])  # uint8 [N, 28, 28], 255 = ink
outputs = dict(zip(names, session.run(names, {"images": images}), strict=True))
for path, score, error in zip(sys.argv[2:], outputs["score"], outputs["reconstruction_error"], strict=True):
    print(f"{path}: score {score:.4f}, reconstruction error {error:.4f}")
