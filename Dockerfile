FROM python:3.12-slim AS build
WORKDIR /app
RUN python -m venv /venv
COPY requirements/run.txt requirements/run.txt
RUN /venv/bin/pip install --no-cache-dir --require-hashes --no-deps -r requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
COPY worker worker
COPY webhook webhook
COPY emulator emulator
COPY migrations migrations
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.12-slim
RUN useradd --system --create-home --uid 10001 worker \
 && install -d -o worker /archive
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 ARCHIVE_URL=file:/archive LOG_FORMAT=json
USER worker
WORKDIR /home/worker
VOLUME /archive
CMD ["extend-video", "--help"]
