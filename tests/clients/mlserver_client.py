"""Arguments: host:port, a .npy file, an image file. Sends what MLServer's codecs encode; prints JSON."""

import json
import sys
import urllib.request
from pathlib import Path

import numpy as np
from mlserver.codecs import Base64Codec, NumpyCodec, NumpyRequestCodec
from mlserver.types import InferenceRequest, InferenceResponse, MetadataModelResponse


def call(path, request=None):
    data = None if request is None else request.model_dump_json(exclude_none=True).encode()
    with urllib.request.urlopen(urllib.request.Request(f"http://{sys.argv[1]}{path}", data)) as response:
        return response.read()


def scores(request):
    answer = InferenceResponse.model_validate_json(call("/v2/models/mnist/infer", request))
    (output,) = [output for output in answer.outputs if output.name == "score"]
    return NumpyCodec.decode_output(output).ravel().tolist()


images = np.load(sys.argv[2])
metadata = MetadataModelResponse.model_validate_json(call("/v2/models/mnist"))
found = {"alive": [json.loads(call("/v2/health/live"))["live"]], "model": metadata.inputs[0].parameters.content_type}
for count in (1, 256, len(images)):
    found[f"UINT8 {count}"] = scores(NumpyRequestCodec.encode_request(images[:count]))
    tensor = NumpyCodec.encode_input("x", images[:count].astype(np.int64))
    found[f"INT64 {count}"] = scores(InferenceRequest(inputs=[tensor]))
file = Base64Codec.encode_input("file", [Path(sys.argv[3]).read_bytes()])
found["file"] = scores(InferenceRequest(inputs=[file]))
print(json.dumps(found))
