"""What the HTTP stack alone costs: the upload is read, a constant answered. uvicorn floor:app"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def raw(request: Request) -> Response:
    await request.body()
    return Response(b'{"score":0.1,"threshold":0.36,"is_anomaly":false}', media_type="application/json")


app = Starlette(routes=[Route("/raw", raw, methods=["POST"])])
