# gpupipe serve in a container: for the CPU, and for NVIDIA GPUs.
#
#   docker build --target cpu -t gpupipe:cpu .
#   docker build --target cuda -t gpupipe:cuda .
#   docker run --rm -p 8500:8500 -p 8501:8501 -v ./characters:/characters:ro -v ./tokens:/run/secrets/tokens:ro gpupipe:cpu
#   docker run --gpus all … gpupipe:cuda
#
# The CUDA libraries come with the packages, so both begin with the same small image; the driver is the host's, and comes
# with the NVIDIA Container Toolkit.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS source
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY gpupipe gpupipe
RUN python -m venv /opt/gpupipe

FROM source AS build-cpu
RUN /opt/gpupipe/bin/python -m pip install ".[cpu,serve]"

FROM source AS build-cuda
RUN /opt/gpupipe/bin/python -m pip install ".[cuda,serve]"

FROM python:${PYTHON}-slim AS base
RUN useradd --system --uid 10001 --home-dir /var/lib/gpupipe --create-home gpupipe \
    && mkdir /characters
ENV PATH=/opt/gpupipe/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/var/lib/gpupipe
USER 10001:10001
WORKDIR /var/lib/gpupipe
VOLUME ["/characters", "/var/lib/gpupipe"]
EXPOSE 8500 8501
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8500/healthz', timeout=2)"]
ENTRYPOINT ["gpupipe"]
CMD ["serve", "/characters", "--host", "0.0.0.0", "--port", "8500", "--grpc-port", "8501", "--token-file", "/run/secrets/tokens", "--grace", "30"]

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
COPY --from=build-cuda /opt/gpupipe /opt/gpupipe
CMD ["serve", "/characters", "--device", "cuda", "--host", "0.0.0.0", "--port", "8500", "--grpc-port", "8501", "--token-file", "/run/secrets/tokens", "--grace", "30"]

# The last one is what is built when no target is named.
FROM base AS cpu
COPY --from=build-cpu /opt/gpupipe /opt/gpupipe
