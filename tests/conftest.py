"""Fixtures that several packages' tests share."""

import atexit
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from warm import Interpreter

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    atexit.register(os._exit, 0)  # the last to be called: to take all modules down costs seconds
gc.disable()  # until all tests are there: what they import stays, and is not to be looked through


def pytest_collection_finish() -> None:
    gc.freeze()
    atexit.register(gc.unfreeze)  # else libraries complain of leaks
    gc.enable()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data lent for checks; see `../shared/data/README.md`."""
    path = Path(os.environ.get("FUSION_MRE_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no lent data at {path} (set FUSION_MRE_DATA)")
    return path


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory) -> Iterator[Interpreter]:
    """A Python that has imported everything; see `warm`."""
    warm = Interpreter(tmp_path_factory.mktemp("interpreter"))
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def accelerator():
    """The device of tests marked `gpu`; FUSION_MRE_TEST_DEVICE=cpu rehearses them without one."""
    torch = pytest.importorskip("torch")
    name = os.environ.get("FUSION_MRE_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


@pytest.fixture(scope="session")
def tiny_captioner(tmp_path_factory) -> Path:
    """A BLIP of random weights, two layers and 40 words."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "photo", "of"]
    words += [f"word{n}" for n in range(31)]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16}
    tokens = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = transformers.BlipConfig(
        text_config=sizes | tokens | {"vocab_size": 40, "encoder_hidden_size": 16},
        vision_config=sizes | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    transformers.set_seed(0)
    transformers.BlipForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    processor = transformers.BlipImageProcessor(size=size)
    transformers.BlipProcessor(processor, tokenizer).save_pretrained(folder)
    return folder
