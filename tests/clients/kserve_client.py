"""Arguments: host:port, a .npy file. Calls the server with the defaults of KServe's client; prints JSON."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def main():
    url, images = f"http://{sys.argv[1]}", np.load(sys.argv[2])
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        alive = [await client.is_server_live(url), await client.is_server_ready(url), await client.is_model_ready(url, "mnist")]
        found = {"alive": alive}
        for count in (1, 256, len(images)):
            for datatype, pixels in (("UINT8", images[:count]), ("FP32", (images[:count] / 255).astype(np.float32))):
                tensor = InferInput("input-0", list(pixels.shape), datatype)
                tensor.set_data_from_numpy(pixels)
                answer = await client.infer(url, InferRequest("mnist", [tensor]), model_name="mnist")
                found[f"{datatype} {count}"] = answer.get_output_by_name("score").as_numpy().tolist()
        tensor = InferInput("input-0", list(images[:256].shape), "UINT8")
        tensor.set_data_from_numpy(images[:256], binary_data=False)
        answer = await client.infer(url, InferRequest("mnist", [tensor]), model_name="mnist")
        found["JSON 256"] = answer.get_output_by_name("score").as_numpy().tolist()
        print(json.dumps(found))


asyncio.run(main())
