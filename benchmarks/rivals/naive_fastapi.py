"""The service as FastAPI's tutorials write it. uvicorn naive_fastapi:app"""

import core
from fastapi import FastAPI, Request, UploadFile
from pydantic import BaseModel

app = FastAPI()


class Answer(BaseModel):
    score: float
    threshold: float
    is_anomaly: bool


@app.post("/form")
def form(file: UploadFile) -> Answer:
    return Answer(**core.answer(core.score([core.decode(file.file.read())])[0]))


@app.post("/raw")
async def raw(request: Request) -> Answer:
    return Answer(**core.answer(core.score([core.decode(await request.body())])[0]))
