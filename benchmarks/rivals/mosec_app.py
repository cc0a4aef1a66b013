"""python mosec_app.py --port PORT --timeout 5000 ; POST /inference with the image as the body"""

from mosec import Server, Worker


class Scorer(Worker):
    def __init__(self) -> None:
        import core

        self.core = core

    def deserialize(self, data):
        return self.core.decode(data)

    def forward(self, data):
        return [self.core.answer(value) for value in self.core.score(data)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Scorer, num=1, max_batch_size=32, max_wait_time=1)
    server.run()
