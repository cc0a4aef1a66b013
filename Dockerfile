# syntax=docker/dockerfile:1
# The server with the shipped detector: docker build -t oddigit . && docker run --gpus all -p 8000:8000 oddigit
# BASE is any image with Python 3.11 or newer, its venv module and pip. torch brings its own CUDA libraries; the driver is the host's.
ARG BASE=python:3.12-slim
FROM ${BASE}

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /srv/oddigit

# The dependencies alone first: this layer of some gigabytes is built again only when they change.
COPY requirements/gpu.txt ./requirements/
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --require-hashes --requirement requirements/gpu.txt \
    && useradd --system --no-create-home --shell /usr/sbin/nologin oddigit

COPY pyproject.toml README.md ./
COPY app ./app
COPY model_store ./model_store
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && python3 -m compileall -q app

USER oddigit
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["python3", "-m", "app"]
CMD ["serve", "--host", "0.0.0.0"]
