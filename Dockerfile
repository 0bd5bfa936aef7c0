# rankpo in a container, on a CPU or on NVIDIA's GPUs:
#   docker build -t rankpo .                                              # CPU
#   docker build -t rankpo:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   docker run --rm -v "$PWD:/work" rankpo data train.jsonl               # any command of `rankpo`
#   docker run --rm --gpus all --ipc=host -v "$PWD:/work" rankpo:cuda train loss=contrastive model=minilm datasets=rankpo datasets.rankpo.path=train.jsonl
ARG PYTHON=3.13
FROM python:${PYTHON}-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=demo,st,faiss,parquet,zstd

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 TOKENIZERS_PARALLELISM=false

WORKDIR /source
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY config config
COPY accelerate_config accelerate_config
COPY hydra_plugins hydra_plugins
COPY rankpo rankpo
# torch first: any other package would pull its default build.
RUN pip install --extra-index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)" \
 && pip install --extra-index-url "$TORCH_INDEX" -c constraints.txt ".[$EXTRAS]"

WORKDIR /work
ENTRYPOINT ["rankpo"]
CMD ["--help"]
