"""What all tests share."""

import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest_plugins = ["hub_cache", "small_experts", "stripes"]

WORDS = "the a book film is was good bad dull great not very".split()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="try to break it for hours: every input of tests/faults")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        for item in items:
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture
def how_many(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Return which of two numbers of inputs to try: the first by default, the second with --long."""
    return lambda quick, thorough: thorough if request.config.getoption("--long") else quick


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: nets this small gain nothing from two, and lose much where other work holds the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's variables and cache out of the tests, and the processes that they start on one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in [name for name in os.environ if name.startswith("GLUE_") and name != "GLUE_TEST_DATA"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def test_data() -> Path:
    """The folder of larger data sets named by GLUE_TEST_DATA; tests that need it are skipped without."""
    folder = os.environ.get("GLUE_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("GLUE_TEST_DATA names no folder with larger data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, which timm, transformers and torchmetrics import as well.

    The one from PyPI is built for CUDA: beside a CPU build of torch its operators do not load, and its import fails
    for want of their schemas. The models need none of these operators.
    """
    if sys.modules.get("torchvision", torch) is None:
        del sys.modules["torchvision"]  # which glue has hidden
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.schemas = library  # which are gone when it is
    return torchvision


@pytest.fixture(scope="session")
def torchmetrics(request):
    """torchmetrics, which imports torchvision where there is one."""
    if "torchvision" in sys.modules or find_spec("torchvision"):
        request.getfixturevalue("torchvision")
    return pytest.importorskip("torchmetrics")


@pytest.fixture
def make_tokenizer():
    """Write a model folder's tokenizer, which knows a few words: [CLS] is 2, [SEP] 3, the words 4 and up."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")

    def make(folder, *, ends=True, **settings):
        vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        if ends:
            tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
                single="[CLS] $A [SEP]",
                pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
            )
        settings = {"unk_token": "[UNK]", "pad_token": "[PAD]", **settings}
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)
        return folder

    return make
