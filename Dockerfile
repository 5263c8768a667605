# The web app and the JSON API. No data and no model is inside: they are mounted (see compose.yaml).
#
#   docker build -t skin-lesion-experiments .
#
# PyTorch's packages for Linux bring CUDA's libraries, 3 GB that a container without a GPU never uses. PyTorch offers
# packages for processors alone, about 0.2 GB, on an index of its own, which pytorch.org names: give its address with
# --build-arg TORCH_INDEX=…
FROM python:3.12-slim AS build
ARG TORCH_INDEX=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY requirements.lock ./
RUN if [ -n "$TORCH_INDEX" ]; then pip install --index-url "$TORCH_INDEX" --constraint requirements.lock torch torchvision; fi
COPY pyproject.toml README.md LICENSE ./
COPY exp_tools ./exp_tools
RUN pip install --constraint requirements.lock ".[app,onnx]"

FROM python:3.12-slim
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin app
COPY --from=build /opt/venv /opt/venv
# There is no Git in here, and what DVC uses of it must not complain.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GIT_PYTHON_REFRESH=quiet DVC_NO_ANALYTICS=1
WORKDIR /app
COPY params.yaml dvc.yaml ./
COPY recipes ./recipes
USER app
VOLUME ["/app/models", "/app/data"]
EXPOSE 8501 8000
# It asks the app or the API, whichever the container's command started.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "exp_tools.serving.health"]
CMD ["exp-tools", "app", "--host", "0.0.0.0", "--port", "8501"]
