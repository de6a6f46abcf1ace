# bolus from a wheelhouse, with no network: make wheelhouse, then docker build --network none -t bolus . (docs/offline.md)
# The base image's Python must be that of the wheelhouse.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

RUN --mount=type=bind,source=wheelhouse,target=/wheelhouse \
    python -m pip install --no-cache-dir --no-index --find-links /wheelhouse "bolus[imagenet]"

COPY LICENSE NOTICE /usr/share/doc/bolus/

RUN useradd --create-home bolus
USER bolus
WORKDIR /home/bolus
ENV HF_HUB_OFFLINE=1
ENTRYPOINT ["bolus"]
