"""Arguments: host:port, a .npy file. Calls the server with the defaults of Triton's client; prints JSON."""

import json
import sys

import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient(sys.argv[1])
images = np.load(sys.argv[2])
version = client.get_model_metadata("mnist")["versions"][0]
found = {
    "alive": [client.is_server_live(), client.is_server_ready(), client.is_model_ready("mnist", version)],
    "server": client.get_server_metadata()["name"],
    "index": [model["name"] for model in client.get_model_repository_index()],
    "model": client.get_model_metadata("mnist", version)["inputs"][0]["datatype"],
    "config": client.get_model_config("mnist")["input"][0]["data_type"],
}
for count in (1, 256, len(images)):
    for datatype, pixels in (("UINT8", images[:count]), ("FP32", (images[:count] / 255).astype(np.float32))):
        tensor = triton.InferInput("images", list(pixels.shape), datatype)
        tensor.set_data_from_numpy(pixels)
        result = client.infer("mnist", [tensor])
        assert result.as_numpy("reconstruction").shape == (count, 28, 28)
        found[f"{datatype} {count}"] = result.as_numpy("score").tolist()
try:
    client.infer("other", [tensor])
except triton.InferenceServerException as error:
    found["error"] = error.message()
print(json.dumps(found))
