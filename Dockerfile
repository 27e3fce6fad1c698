# The machines of a cluster, or one machine: Debian with Python, vtx-scale and its Ray.
#
#     docker build -t vtx-scale .
#     docker run --rm --shm-size=2g vtx-scale vtx demo
#
# PyPI's torch brings the CUDA libraries, so that a host needs NVIDIA's driver and container toolkit
# alone (docker run --gpus all). Extras are chosen by --build-arg EXTRAS=cluster,s3,deepspeed.
FROM debian:bookworm-slim

# g++ and Python's headers are for torch.compile, wget for the probes that KubeRay sets by itself
RUN apt-get update && apt-get install -y --no-install-recommends \
    bash ca-certificates g++ python3 python3-dev python3-venv wget && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/vtx
ENV PATH=/opt/vtx/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin

WORKDIR /opt/vtx/src
COPY . .
ARG EXTRAS=cluster,s3
RUN pip install --no-cache-dir -c constraints.txt ".[$EXTRAS]"

# a login shell, which KubeRay starts Ray by, sets a PATH of its own
RUN echo 'PATH=/opt/vtx/bin:$PATH' > /etc/profile.d/vtx.sh

# nobody here is root; run folders on a mounted disk belong to this number
RUN useradd --create-home --uid 1000 vtx
USER vtx
WORKDIR /home/vtx
RUN vtx --version && vtx show clip_vit_b32 --smoke > /dev/null
CMD ["vtx", "help"]
