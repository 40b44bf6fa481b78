# syntax=docker/dockerfile:1
# The service. Build it with: docker build -t crossmi .

FROM python:3.11-slim AS build
COPY --from=ghcr.io/astral-sh/uv:0.13.9 /uv /usr/local/bin/uv
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY s2pairs ./s2pairs
COPY mimodel ./mimodel
COPY service ./service
# Only what the service needs, in the versions and with the hashes of the lock.
RUN uv venv --python /usr/local/bin/python /opt/crossmi \
 && uv pip install --python /opt/crossmi --constraint requirements.lock '.[service]'

FROM python:3.11-slim
# The one library that rasterio's wheel takes from the system.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libexpat1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin crossmi
COPY --from=build /opt/crossmi /opt/crossmi
USER 10001
ENV PATH=/opt/crossmi/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["crossmi-service", "--artifact", "/artifact", "--port", "8000"]
CMD ["--host", "0.0.0.0"]
