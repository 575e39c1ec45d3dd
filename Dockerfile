# The job as an image: `docker run IMAGE` is `python -m job train` with /job.yaml, into /artifacts.
#
#   docker build --build-arg VARIANT=cpu --tag job .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD/artifacts:/artifacts" job

# Python 3.11, 3.12 or 3.13, the same in both stages: a virtual environment is bound to the
# interpreter that it was made with.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# ---- packages ----------------------------------------------------------------------------------
# In a stage of its own, so that what only installs them stays behind.
FROM ${BASE_IMAGE} AS packages

# cuda also runs on the CPU, but is several GB; cpu runs nowhere else.
ARG VARIANT=cuda

# The locks and not the source: a change of the source installs nothing again.
COPY requirements/install.py requirements/cpu.txt requirements/cuda.txt /requirements/

# The cache, which is in no layer, spares a second download when a lock changes.
RUN --mount=type=cache,target=/root/.cache/pip \
    python /requirements/install.py /opt/venv --runtime --variant ${VARIANT}

# Nobody installs, tests or compiles against a package in the image: no pip, no tests (torch ships
# test programs too), headers, static libraries or stubs. Licences, in *.dist-info, stay. torch
# looks for torch_shm_manager when it is imported.
RUN /opt/venv/bin/python -m pip uninstall --quiet --yes pip \
    && packages=$(echo /opt/venv/lib/python3*/site-packages) \
    && rm -rf "${packages}"/torch/test "${packages}"/torch/lib/lib*_test.so \
    && rm -f "${packages}"/pyarrow/*_flight.* "${packages}"/pyarrow/*_s3*.so* \
    && find "${packages}/torch/bin" -mindepth 1 ! -name torch_shm_manager -delete \
    && find "${packages}" -name '*.dist-info' -prune \
        -o -type d \( -name test -o -name tests -o -name include \) -prune -exec rm -rf {} + \
        -o -type f -regex '.*\.\(a\|h\|hpp\|cuh\|pyi\)' -exec rm {} +

# ---- what the packages are -----------------------------------------------------------------------
# `make sbom`: built only when it is asked for by name.
FROM packages AS sbom-maker
COPY requirements/tools.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/tools \
    && /opt/tools/bin/pip install -qq --no-deps --require-hashes -r /requirements/tools.txt \
    && /opt/tools/bin/cyclonedx-py environment --output-reproducible \
        --output-file /sbom.cdx.json /opt/venv

FROM scratch AS sbom
COPY --from=sbom-maker /sbom.cdx.json /

# ---- the image ---------------------------------------------------------------------------------
FROM ${BASE_IMAGE}

# The official image has no bytecode for the standard library, and with a read-only root none can
# be kept: each start of the job, and of its verifying process, would compile it anew. Of its tests,
# where a base has them, some do not compile.
RUN python -m compileall -q -x 'site-packages|/tests?/' \
    "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

# pip has compiled what it installed.
COPY --from=packages /opt/venv /opt/venv

# Writable by any user, so that a named volume, which copies it, is too. Without a mount the job
# refuses it: JOB_REQUIRE_MOUNT.
RUN mkdir --mode 1777 /artifacts

# The configuration that a mount at /job.yaml replaces.
COPY job.yaml /job.yaml
COPY job /app/job
# Whatever the umask of the checkout was, every user may read it.
RUN chmod -R a+rX /app /job.yaml && python -m compileall -q /app/job

# TMPDIR: exporting asks torch for a temporary folder, and with a read-only root /dev/shm is the
#   one that is always writable; an empty folder is all that goes there. Where there is none,
#   Python takes /tmp. `verify --self-test` alone puts models there.
# JOB__OUTPUT__DIR: before job.yaml's own output.dir, which names a folder of another machine;
#   the command line comes before both.
# JOB_REQUIRE_MOUNT: refuse an output folder that is gone with the container.
# ORT_DISABLE_TELEMETRY: onnxruntime else writes a device id into the home folder, and warns on
#   a read-only root. The job sets it for itself; this is for whatever else is run here.
# NVIDIA_DRIVER_CAPABILITIES: what the driver mounts into the container. Which GPUs it mounts is
#   for `--gpus` to say, or the scheduler: NVIDIA_VISIBLE_DEVICES here would take all of them.
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONPATH=/app \
    TMPDIR=/dev/shm \
    JOB__OUTPUT__DIR=/artifacts \
    JOB_REQUIRE_MOUNT=1 \
    ORT_DISABLE_TELEMETRY=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Where --config finds job.yaml.
WORKDIR /

# Numbers, because Kubernetes cannot tell that a name is not root, and a group, which would be root's.
# Nothing in the image depends on them, so that any other is as good: `--user "$(id -u):$(id -g)"`
# owns what it publishes.
USER 10001:10001

# Without a shell between: the job itself gets the signals, and its exit code is the container's.
ENTRYPOINT ["python", "-m", "job"]
CMD ["train"]

# Last, because it differs with every commit. manifest.json says it too.
ARG REVISION
ENV JOB_SOURCE_REVISION=${REVISION}
ARG BASE_IMAGE
LABEL org.opencontainers.image.title="job" \
      org.opencontainers.image.description="A batch training job whose exit code you can trust" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.revision="${REVISION}"
