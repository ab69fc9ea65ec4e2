# Build the image of the service with the demo model, for the CPU:
#     docker build -t bert-embedding-service .
# For NVIDIA GPUs, name the CUDA version of the torch build:
#     docker build -t bert-embedding-service:cuda --build-arg TORCH_BACKEND=cu130 .
#
# tests/service/test_packaging.py runs the RUN lines below in a clean environment.

# The Python version that CI tests.
ARG PYTHON_VERSION=3.11

# Workers use g++ to compile forward passes for the processor that they run on.
FROM python:${PYTHON_VERSION}-slim AS base
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

FROM base AS build
ARG TORCH_BACKEND=cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY server server
COPY client client
RUN python -m venv /opt/venv
RUN /opt/venv/bin/pip install --no-cache-dir -c constraints.txt uv
RUN /opt/venv/bin/uv pip install --no-cache --no-deps --python /opt/venv --torch-backend=${TORCH_BACKEND} -c constraints.txt torch
RUN /opt/venv/bin/uv pip install --no-cache --python /opt/venv -c constraints.txt ".[server,demo,otel]"

# The forward pass of the demo model, compiled for the processor that builds the image. On another processor, or with
# another model, a server compiles it at its first start and keeps it in the volume.
RUN mkdir -p -m 755 /opt/volumes/models && mkdir -m 700 /opt/volumes/models/.compiled
RUN BERT_SERVING_COMPILE_CACHE=/opt/volumes/models/.compiled /opt/venv/bin/python -c "from bert_serving.server import Encoder; assert Encoder(compile='wait', device='cpu').forward_kind == 'compiled'"

FROM base
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HF_HOME=/models/.huggingface \
    BERT_SERVING_COMPILE_CACHE=/models/.compiled \
    BERT_SERVING_HTTP_HOST=0.0.0.0 \
    BERT_SERVING_HTTP_PORT=8125
# Only HTTP can be reached from outside the container. For BertClient, set BERT_SERVING_HOST=0.0.0.0 too, and protect
# ports 5555 and 5556 with -curve_dir: they are not protected by API keys.
#
# Mount models here and use them with -model_dir /models/NAME. Models from the hub are cached here too. A new volume
# takes the owner of this folder; a folder of the host that is mounted here keeps its own.
COPY --from=build --chown=10001:10001 /opt/volumes /
VOLUME /models
USER 10001:10001
EXPOSE 8125
# With -tls_cert, the port answers only to https. Its certificate need not be valid for 127.0.0.1.
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import ssl, urllib.request as u\ntry:\n    u.urlopen('http://127.0.0.1:8125/ready', timeout=4)\nexcept OSError:\n    u.urlopen('https://127.0.0.1:8125/ready', timeout=4, context=ssl._create_unverified_context())"]
# On this signal, the server finishes the requests that it has accepted, within -drain_timeout seconds.
STOPSIGNAL SIGTERM
ENTRYPOINT ["bert-serving-start"]
