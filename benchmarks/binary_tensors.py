"""The time of 256 images as tensors of the Open Inference Protocol, against the same images as a .npy body.

    oddigit serve --port 8000
    PYTHON benchmarks/binary_tensors.py 127.0.0.1:8000

PYTHON is that of an environment with tritonclient[http], kserve or mlserver; what it does not have is left out. Prints the
median milliseconds of each call, all calls in turns over one connection each.
"""

import argparse
import asyncio
import http.client
import importlib.util
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

IMAGES, WARM = 256, 10
Call = Callable[[], object]


def bodies(address: str, images: np.ndarray) -> Iterator[tuple[str, Call]]:
    """Calls without a client of the protocol: .npy, and a binary tensor."""
    line = http.client.HTTPConnection(address)

    def call(path: str, body: bytes, **headers: str) -> bytes:
        line.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = line.getresponse()
        content = response.read()
        assert response.status == 200, content
        return content

    out = io.BytesIO()
    np.save(out, images)
    npy = out.getvalue()
    yield ".npy, answered in JSON", lambda: json.loads(call("/score", npy, content_type="application/x-npy"))
    yield ".npy, answered as .npy", lambda: call("/score", npy, content_type="application/x-npy", accept="application/x-npy")
    tensor = {"name": "x", "datatype": "UINT8", "shape": images.shape, "parameters": {"binary_data_size": images.nbytes}}
    for what, outputs in (("scores", [{"name": "score"}]), ("all outputs", [])):
        head = {"inputs": [tensor], "parameters": {"binary_data_output": True}, **({"outputs": outputs} if outputs else {})}
        text = json.dumps(head).encode()
        body, size = text + images.tobytes(), str(len(text))
        yield (
            f"binary tensor, {what}",
            lambda body=body, size=size: call("/v2/models/mnist/infer", body, inference_header_content_length=size),
        )


def triton(address: str, images: np.ndarray) -> Iterator[tuple[str, Call]]:
    """Triton's client."""
    import tritonclient.http as triton

    client = triton.InferenceServerClient(address)

    def infer(outputs: list[str] | None) -> object:
        tensor = triton.InferInput("images", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images)
        asked = [triton.InferRequestedOutput(name) for name in outputs] if outputs else None
        return client.infer("mnist", [tensor], outputs=asked).as_numpy("score")

    yield "tritonclient, scores", lambda: infer(["score"])
    yield "tritonclient, all outputs (default)", lambda: infer(None)


def kserve(address: str, images: np.ndarray) -> Iterator[tuple[str, Call]]:
    """KServe's client."""
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
    from kserve.protocol.infer_type import RequestedOutput

    client, loop = InferenceRESTClient(RESTConfig(protocol="v2")), asyncio.new_event_loop()

    def infer(outputs: list[str] | None) -> object:
        tensor = InferInput("x", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images)
        asked = [RequestedOutput(name, {"binary_data": True}) for name in outputs] if outputs else None
        request = InferRequest("mnist", [tensor], request_outputs=asked)
        answer = loop.run_until_complete(client.infer(f"http://{address}", request, model_name="mnist"))
        return answer.get_output_by_name("score").as_numpy()

    yield "kserve, scores", lambda: infer(["score"])
    yield "kserve, all outputs (default)", lambda: infer(None)


def mlserver(address: str, images: np.ndarray) -> Iterator[tuple[str, Call]]:
    """MLServer's types and codecs, which have JSON alone."""
    from mlserver.codecs import NumpyCodec, NumpyRequestCodec
    from mlserver.types import InferenceResponse, RequestOutput

    line = http.client.HTTPConnection(address)

    def infer() -> object:
        request = NumpyRequestCodec.encode_request(images)
        request.outputs = [RequestOutput(name="score")]
        line.request("POST", "/v2/models/mnist/infer", request.model_dump_json(exclude_none=True))
        answer = InferenceResponse.model_validate_json(line.getresponse().read())
        return NumpyCodec.decode_output(answer.outputs[0])

    yield "mlserver, JSON, scores", infer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="HOST:PORT of a server")
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    address = options.address
    images = np.random.RandomState(0).randint(0, 256, (IMAGES, 28, 28)).astype(np.uint8)
    calls = list(bodies(address, images))
    for client, package in ((triton, "tritonclient"), (kserve, "kserve"), (mlserver, "mlserver")):
        if importlib.util.find_spec(package):
            calls += client(address, images)
        else:
            print(f"{package} is not installed")
    times: dict[str, list[float]] = {name: [] for name, _ in calls}
    for index in range(WARM + options.rounds):
        for name, call in calls:
            began = time.perf_counter()
            call()
            if index >= WARM:
                times[name].append(1000 * (time.perf_counter() - began))
    first = statistics.median(times[calls[0][0]])
    print(f"| {IMAGES} images | median ms | times .npy |\n|---|---:|---:|")
    for name, found in times.items():
        print(f"| {name} | {statistics.median(found):.2f} | {statistics.median(found) / first:.2f} |")


if __name__ == "__main__":
    main()
