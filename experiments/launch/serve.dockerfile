# A served model as a container, of a checkout.
#
#     docker build --file experiments/launch/serve.dockerfile --tag omnidiff .
#     docker run --read-only --tmpfs /tmp --volume omnidiff:/cache --publish 127.0.0.1:8000:8000 --env OMNIDIFF_API_KEY omnidiff
#
# For NVIDIA GPUs install "/src[serve,cuda]" and run with --gpus=all.
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir "/src[serve]" \
    && rm -r /src \
    && useradd --uid 1000 --create-home omnidiff \
    && install --directory --owner=omnidiff /cache
USER 1000
ENV JAX_COMPILATION_CACHE_DIR=/cache
VOLUME /cache
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/live')"]
ENTRYPOINT ["omnidiff", "serve", "--host=0.0.0.0", "--port=8000"]
