# Two images from one file: `--target frontend`, without torch, and `--target worker`, with it.
# BASE is any image with Python 3.11 or newer and its venv module. TORCH_INDEX is the package index of
# another build of torch (the default one is for CUDA and runs on CPUs too; the CPU build is a tenth
# of its size), SYSTEM_PACKAGES what a worker needs from the distribution. A pip configuration of one's own
# (a mirror, say) comes in as the build secret `pip_conf` and stays in no layer.
ARG BASE=python:3.12-slim

# What the packages need, from pyproject.toml alone: a change of code leaves these layers as they are.
FROM ${BASE} AS frontend-packages
ENV PATH=/opt/venv/bin:$PATH
RUN ["python3", "-m", "venv", "/opt/venv"]
WORKDIR /build
COPY pyproject.toml ./
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["traces"], sep="\n")' > packages.txt \
    && pip install --no-cache-dir --requirement packages.txt

FROM frontend-packages AS worker-packages
ARG TORCH=torch>=2.11
ARG TORCH_INDEX=
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    pip install --no-cache-dir ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "${TORCH}"
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["worker"], sep="\n")' > packages.txt \
    && pip install --no-cache-dir --requirement packages.txt

FROM frontend-packages AS code
COPY . .
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    pip install --no-cache-dir --no-deps --target /opt/switchyard .

FROM ${BASE} AS runtime
# The root file system is read-only where compose.yaml runs this; libraries that want a home get /tmp.
ENV PATH=/opt/venv/bin:/opt/switchyard/bin:$PATH \
    PYTHONPATH=/opt/switchyard \
    PYTHONUNBUFFERED=1 \
    GRPC_VERBOSITY=NONE \
    HF_HUB_OFFLINE=1 \
    HOME=/tmp
WORKDIR /opt/switchyard
# Where a volume may hold the secret that frontend and workers share.
RUN install -d -m 0700 -o 10001 -g 10001 /run/link

FROM runtime AS worker
ARG SYSTEM_PACKAGES=
RUN if [ -n "${SYSTEM_PACKAGES}" ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends ${SYSTEM_PACKAGES} \
        && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=worker-packages /opt/venv /opt/venv
COPY --from=code /opt/switchyard /opt/switchyard
USER 10001:10001
EXPOSE 50061
ENTRYPOINT ["python", "-m", "workers"]

FROM runtime AS frontend
COPY --from=frontend-packages /opt/venv /opt/venv
COPY --from=code /opt/switchyard /opt/switchyard
USER 10001:10001
EXPOSE 50051 8000
ENTRYPOINT ["python", "-m", "frontend"]
