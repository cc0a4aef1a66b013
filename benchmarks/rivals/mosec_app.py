"""MAX_BATCH_SIZE=32 python mosec_app.py --port PORT --timeout 5000 ; POST /inference with the image as the body"""

import os

from mosec import Server, Worker

MAX_BATCH_SIZE = int(os.environ["MAX_BATCH_SIZE"])


class Scorer(Worker):
    def __init__(self) -> None:
        import core

        self.core = core

    def deserialize(self, data):
        return self.core.decode(data)

    def forward(self, data):  # a list, if batches may be larger than 1
        scores = self.core.score([data] if MAX_BATCH_SIZE == 1 else data)
        answers = [self.core.answer(value) for value in scores]
        return answers[0] if MAX_BATCH_SIZE == 1 else answers


if __name__ == "__main__":
    server = Server()
    server.append_worker(Scorer, num=1, max_batch_size=MAX_BATCH_SIZE, max_wait_time=1)
    server.run()
