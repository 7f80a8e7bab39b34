# syntax=docker/dockerfile:1.7
# One image for API and workers; the command decides.
#   docker build -t tersor .
#   docker build -t tersor:cuda --build-arg TORCH=cuda .
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
# cpu: torch's CPU build from the index given; cuda: the default build, which brings CUDA itself.
ARG TORCH=cpu
ARG TORCH_VERSION=2.13.0
# Where the CPU build lies; PyTorch's "Get started" page names it. Empty: the default build, which
# works on a CPU too, but brings gigabytes of CUDA.
ARG TORCH_CPU_INDEX=
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/tersor
ENV PATH=/opt/tersor/bin:$PATH
# torch first and alone: its layer is large and changes seldom
RUN if [ "$TORCH" = cpu ] && [ -n "$TORCH_CPU_INDEX" ]; then \
        pip install --index-url "$TORCH_CPU_INDEX" "torch==${TORCH_VERSION}"; \
    else \
        pip install "torch==${TORCH_VERSION}"; \
    fi
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY app app
COPY compress compress
COPY tersor tersor
COPY workers workers
RUN sed -i '/^torch==/d' constraints.txt \
    && pip install -c constraints.txt ".[server,postgres,openvino,tracing]"

FROM python:${PYTHON_VERSION}-slim
# libgomp: torch's CPU kernels run on OpenMP
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin tersor \
    && install -d -o tersor -g tersor -m 0700 /data
COPY --from=build /opt/tersor /opt/tersor
ENV PATH=/opt/tersor/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TERSOR_DATA_DIR=/data
USER tersor
WORKDIR /data
VOLUME /data
EXPOSE 8080
# tini reaps what a killed job leaves and passes signals on
ENTRYPOINT ["tini", "--"]
# Alone, the image is the whole service; compose gives API and workers a container each.
CMD ["tersor", "up", "--data-dir", "/data", "--host", "0.0.0.0", "--port", "8080"]
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
