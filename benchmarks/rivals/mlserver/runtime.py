"""mlserver start . ; POST /v2/models/ae/infer with a [1, 784] FP32 tensor"""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Scorer(MLModel):
    async def load(self) -> bool:
        import core

        self.core = core
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0]).astype("float32")
        scores = np.array(self.core.score(list(x)), dtype="float32").reshape(-1, 1)
        return InferenceResponse(model_name="ae", outputs=[NumpyCodec.encode_output("score", scores)])
