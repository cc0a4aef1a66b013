# syntax=docker/dockerfile:1
# The server with the shipped detectors.
#   docker build -t oddigit .                       with PyTorch, for NVIDIA GPUs: docker run --gpus all -p 127.0.0.1:8000:8000 oddigit
#   docker build -t oddigit:cpu --target cpu .      with ONNX Runtime alone:       docker run -p 127.0.0.1:8000:8000 oddigit:cpu
# BASE is any image with Python 3.11 or newer, its venv module and pip. torch brings its own CUDA libraries; the driver is the host's.
ARG BASE=python:3.12-slim

# The dependencies alone first: their layers are built again only when they change.
FROM ${BASE} AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_QUIET=1
WORKDIR /build
COPY requirements/core.txt requirements/
RUN python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python3 install --require-hashes --requirement requirements/core.txt

# The program, with its metadata, which tell its version, and the detectors. Any user can read them, whatever the umask of the clone.
FROM dependencies AS program
COPY pyproject.toml README.md ./
COPY app app
RUN python3 -m pip --python /opt/venv/bin/python3 install --no-deps --no-build-isolation --target target . \
    && mkdir -p /srv/oddigit \
    && mv target/*.dist-info app /srv/oddigit \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /srv/oddigit/app
COPY model_store /srv/oddigit/model_store
COPY deploy/entrypoint.sh /srv/oddigit/
RUN chmod -R a+rX /srv/oddigit && chmod a+x /srv/oddigit/entrypoint.sh

# Neither tests nor headers of libraries, nor what builds packages or converts models.
FROM dependencies AS dependencies-cpu
RUN cd /opt/venv/lib/python3*/site-packages \
    && rm -rf setuptools* _distutils_hack distutils-precedence.pth onnxruntime/transformers onnxruntime/quantization onnxruntime/tools \
    && find . -type d \( -name tests -o -name include \) -prune -exec rm -rf {} +

FROM ${BASE} AS server
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Oddigit" \
    org.opencontainers.image.description="Tells images of single digits from other images, over HTTP" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
# /dev/shm is writable where the root file system is not. A drain of 2 s: `docker stop` of an idle server takes less than 3 s.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/srv/oddigit \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TMPDIR=/dev/shm \
    ORT_DISABLE_TELEMETRY=1 \
    ODDIGIT_DRAIN_S=2
WORKDIR /srv/oddigit
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
USER 10001:10001
ENTRYPOINT ["/srv/oddigit/entrypoint.sh"]
CMD ["serve", "--host", "0.0.0.0"]

FROM server AS cpu
COPY --from=dependencies-cpu /opt/venv /opt/venv
COPY --from=program /srv/oddigit ./

# Without triton, which compiles kernels that no detector needs. The libraries of CUDA stay: torch is linked with all of them.
FROM dependencies AS dependencies-cuda
COPY requirements/gpu.txt requirements/
RUN python3 -m pip --python /opt/venv/bin/python3 install --require-hashes --requirement requirements/gpu.txt \
    && cd /opt/venv/lib/python3*/site-packages \
    && rm -rf setuptools* _distutils_hack distutils-precedence.pth onnxruntime/transformers onnxruntime/quantization onnxruntime/tools \
    && rm -rf triton* torch/bin/protoc* torch/share torch/lib/*.a \
    && find . -type d \( -name tests -o -name include \) -prune -exec rm -rf {} + \
    && /opt/venv/bin/python3 -c "import torch"

FROM server AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=dependencies-cuda /opt/venv /opt/venv
COPY --from=program /srv/oddigit ./
