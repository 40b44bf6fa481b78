# syntax=docker/dockerfile:1
# The service:           docker build --target service -t crossmi .
# Dask, S3, notebooks:   docker build --target workbench -t crossmi-workbench .

FROM python:3.11-slim AS build
# The root of a container is read-only: without bytecode in the image every start would compile
# torch anew.
ENV UV_COMPILE_BYTECODE=1
COPY --from=ghcr.io/astral-sh/uv:0.13.9 /uv /usr/local/bin/uv
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY s2pairs ./s2pairs
COPY mimodel ./mimodel
COPY service ./service
COPY crossmi ./crossmi
COPY configs ./configs
RUN uv venv --python /usr/local/bin/python /opt/crossmi

FROM build AS build-service
# Only what the service needs, in the versions and with the hashes of the lock.
RUN uv pip install --python /opt/crossmi --constraint requirements.lock '.[service]'

FROM build AS build-workbench
RUN uv pip install --python /opt/crossmi --constraint requirements.lock \
  '.[cluster,s3,train,service,client]' 'moto[server]' 'jupyterlab>=4.4,<5'

FROM python:3.11-slim AS base
# The one library that rasterio's wheel takes from the system; and bytecode of Python's own modules,
# which its image leaves out.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libexpat1 \
 && rm -rf /var/lib/apt/lists/* \
 && python -m compileall -q -x '/tests?/' /usr/local/lib/python3.11 \
 && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin crossmi \
 && install --directory --owner 10001 --group 10001 /crossmi
ENV PATH=/opt/crossmi/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp

FROM base AS workbench
COPY --from=build-workbench /opt/crossmi /opt/crossmi
USER 10001
WORKDIR /crossmi
# For commands that name them as the documents do: --config configs/method/infomax.yaml
COPY configs ./configs
CMD ["mimodel", "--help"]

# The last stage is what `docker build .` makes.
FROM base AS service
COPY --from=build-service /opt/crossmi /opt/crossmi
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
# Of a folder of models that is mounted, so that a new artifact may take the place of the old one.
ENV CROSSMI_ARTIFACT=/models/artifact
ENTRYPOINT ["crossmi-service", "--port", "8000"]
CMD ["--host", "0.0.0.0"]
