"""bentoml serve bentoml_app:Scorer --port PORT ; POST /score {"image": base64}"""

import bentoml


@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Scorer:
    def __init__(self) -> None:
        import core

        self.core = core

    @bentoml.api
    def score(self, image: str) -> dict:
        return self.core.answer(self.core.score([self.core.decode_base64(image)])[0])
