"""python litserve_app.py PORT MAX_BATCH_SIZE ; POST /predict {"image": base64}"""

import sys

import litserve


class Scorer(litserve.LitAPI):
    def setup(self, device):
        import core

        self.core = core

    def decode_request(self, request):
        return self.core.decode_base64(request["image"])

    def batch(self, inputs):
        return inputs

    def predict(self, inputs):
        return self.core.score(inputs) if isinstance(inputs, list) else self.core.score([inputs])[0]

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return self.core.answer(output)


if __name__ == "__main__":
    port, size = int(sys.argv[1]), int(sys.argv[2])
    api = Scorer(max_batch_size=size, batch_timeout=0.002) if size > 1 else Scorer()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=port, num_api_servers=1, generate_client_file=False, log_level="warning")
