#!/usr/bin/env bash
# bash tests/bench/gpu_wheels.sh DIR: fill DIR with what gpu.sh needs beside python, torch,
# torchvision, transformers and timm. PYTHON_VERSION=3.11 for another Python than 3.12; PYTHON is
# the one whose pip downloads, with torch, which deepspeed's build asks for.
set -euo pipefail
dir=${1:?usage: bash tests/bench/gpu_wheels.sh DIR}
python=${PYTHON:-python3}
version=${PYTHON_VERSION:-3.12}
mkdir -p "$dir"

# On PyPI deepspeed is source. None of its compiled operations is used here, and without them its
# wheel fits every Python and needs no CUDA to be built.
DS_BUILD_OPS=0 "$python" -m pip wheel -q --no-deps --no-build-isolation -w "$dir" deepspeed

"$python" -m pip download -q --no-deps -d "$dir" --only-binary :all: \
    --python-version "$version" --implementation cp --abi "cp${version/./}" --abi abi3 --abi none \
    --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 \
    webdataset braceexpand simplejpeg fsspec sentencepiece \
    jsonargparse docstring_parser typeshed_client typing_extensions PyYAML \
    tensorboard tensorboard-data-server absl-py grpcio protobuf Markdown Werkzeug MarkupSafe \
    einops hjson msgpack ninja psutil py-cpuinfo tqdm packaging \
    pydantic pydantic_core annotated-types typing-inspection \
    pytest iniconfig pluggy pygments

size=$(du -sk "$dir" | cut -f1)
echo "$dir: $(find "$dir" -name '*.whl' | wc -l) wheels, $((size / 1024)) MiB"
[ "$size" -le $((60 * 1024)) ] || { echo "more than 60 MiB" >&2; exit 1; }
