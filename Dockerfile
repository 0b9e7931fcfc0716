# Pinned by full version. A digest would pin harder, and has to be looked up where the registry can be
# reached: `docker buildx imagetools inspect python:3.12.12-slim-bookworm`, then add `@sha256:...`.
FROM python:3.12.12-slim-bookworm AS build
WORKDIR /app
# Without pip of its own: nothing that installs goes into the final image.
RUN python -m venv --without-pip /venv
COPY requirements/run.txt requirements/run.txt
RUN pip --python /venv/bin/python install --no-cache-dir --require-hashes --no-deps -r requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
COPY worker worker
COPY webhook webhook
COPY emulator emulator
COPY migrations migrations
RUN pip --python /venv/bin/python install --no-cache-dir --no-deps --no-build-isolation . \
 && pip --python /venv/bin/python uninstall --yes setuptools
# For a first job without a video of one's own: docs/deployment.md.
RUN ["/venv/bin/python", "-c", "from pathlib import Path; from worker.media.sample import make_sample; make_sample(Path('/sample.mp4'))"]

FROM python:3.12.12-slim-bookworm
LABEL org.opencontainers.image.title="extend-video" \
      org.opencontainers.image.description="Pay-once worker for fal's extend-video" \
      org.opencontainers.image.licenses="MIT"
RUN python -m pip uninstall --yes --root-user-action=ignore pip \
 && useradd --system --create-home --uid 10001 worker \
 && install -d -o worker /archive
COPY --from=build /venv /venv
COPY --from=build /sample.mp4 /usr/share/extend-video/sample.mp4
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 ARCHIVE_URL=file:/archive SPOOL_DIR=/archive/spool LOG_FORMAT=json
# By number, so that Kubernetes' runAsNonRoot can tell.
USER 10001
WORKDIR /home/worker
EXPOSE 8000
# Of the receiver, which is what the image runs unless it is told otherwise.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=6 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["gunicorn", "--bind", "0.0.0.0:8000", "--threads", "8", "--graceful-timeout", "20", "--no-control-socket", "webhook:create_app()"]
