# Sourced: make the virtual environment ($FUSION_MRE_VENV, default .venv) with the given extras,
# once, and enter it. Uses python3.11 or newer (PYTHON=… to choose).
venv="${FUSION_MRE_VENV:-$PWD/.venv}"
extras="$1"
stamp="$venv/.fusion-mre-$(printf '%s' "$extras $PWD $(cat pyproject.toml)" | sha256sum | cut -c1-16)"
if [ ! -f "$stamp" ]; then
    echo "environment: $venv (about 2 minutes and 6 GB the first time)"
    [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --editable ".[$extras]"
    touch "$stamp"
fi
export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv" TOKENIZERS_PARALLELISM=false
