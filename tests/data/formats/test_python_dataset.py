import pytest
import torch

from glue_cli.data import normalisation, read_dataset
from glue_cli.data.loader import Examples
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.foundation.progress import Finished, Started
from glue_cli.running.device import Compute
from glue_cli.spec.schema import DataSpec

TOP = """
import torch

class Pairs(torch.utils.data.Dataset):
    def __init__(self, *pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return self.pairs[i]

class Boom:
    def __len__(self): return 3
    def __getitem__(self, i): return (1.0, 0) if i < 2 else 1 / 0

def image(value, n=3): return torch.full((n, 4, 5), value, dtype=torch.uint8)
"""


@pytest.fixture
def read(tmp_path, events, request):
    """Read what a function of this body returns."""

    def call(body, split="train", **settings):
        name = f"code_{len(list(tmp_path.glob('*.py')))}"  # a file is imported once
        (tmp_path / f"{name}.py").write_text(f"{TOP}\ndef data(split, *more):\n    {body}\n")
        spec = DataSpec(format=f"python:{name}:data", **settings)
        found = read_dataset(spec, split, root=tmp_path / "data", folder=tmp_path, progress=events.append)
        return found

    return call


def test_images_and_labels(read, events):
    found = read("return Pairs((image(1), 2), (image(7), torch.tensor(0)), (image(9), True))")
    assert found.inputs.dtype == torch.uint8 and found.inputs.shape == (3, 3, 4, 5)
    assert found.inputs[:, 0, 0, 0].tolist() == [1, 7, 9] and found.targets.tolist() == [2, 0, 1]
    assert found.targets.dtype == torch.int64 and found.class_names is None
    assert events[0] == Started("read", 3, "examples") and events[-1] == Finished()
    assert normalisation(DataSpec(format="python:x:y"), found) == ((0.5,), (0.5,))


def test_a_random_transform_draws_the_same_in_every_run(read):
    body = "import numpy, random; return Pairs(*((torch.rand(2) + random.random() + numpy.random.rand(), 0),) * 2)"
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = read(body)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(read(body).inputs, first.inputs) and first.inputs.std() > 0


def test_an_item_may_import_what_lies_beside_the_spec(read, tmp_path):
    (tmp_path / "beside_items.py").write_text("LABEL = 4\n")
    lazy = "class Lazy(Boom):\n        def __getitem__(self, i):\n            import beside_items\n"
    found = read(f"{lazy}            return 1.0, beside_items.LABEL\n    return Lazy()")
    assert found.targets.tolist() == [4, 4, 4]


def test_numbers_become_float32(read):
    found = read(
        "return Pairs((torch.ones(2, dtype=torch.float64), [0.5, 1.0]), (torch.zeros(2).double(), [2.0, 3.0]))"
    )
    assert found.inputs.dtype == found.targets.dtype == torch.float32
    assert found.inputs.tolist() == [[1, 1], [0, 0]] and found.targets.tolist() == [[0.5, 1], [2, 3]]
    assert read("return Pairs(([1.0, 2.0], 0.5), ((3.0, 4.0), 1.5))").targets.tolist() == [0.5, 1.5]


def test_numpy(read):
    pytest.importorskip("numpy")
    found = read("import numpy as np; return Pairs((np.ones((1, 2, 2), np.uint8), np.int32(3)))")
    assert found.inputs.shape == (1, 1, 2, 2) and found.targets.tolist() == [3]


def test_the_function_is_told_the_split_and_the_root(read, tmp_path):
    body = "return Pairs(([float(len(more)), float(split == 'test')], 0)) if split != 'val' else None"
    assert read(body).inputs.tolist() == [[0, 0]] and read(body, "test").inputs.tolist() == [[0, 1]]
    assert read(body, root="data").inputs.tolist() == [[1, 0]]
    assert read(body, "val") is None
    asserted = f"assert str(more[0]) == {str(tmp_path / 'data')!r}; return Pairs(([1.0], 0))"
    assert len(read(asserted, root="data")) == 1


def test_class_names(read):
    named = "found = Pairs(([1.0], 0), ([2.0], 1)); found.classes = {}; return found"
    assert read(named.format(["ant", "bee", "cow"])).class_names == ("ant", "bee", "cow")
    assert read(named.format("lambda: 3")).class_names is None
    with pytest.raises(DataError, match="has 1 names in 'classes', but a label 1"):
        read(named.format(["ant"]))


def test_labels_are_numbered_as_in_train_in_every_split(read):
    body = "found = Pairs(([1.0], 0), ([2.0], 1)); found.classes = ['ant', 'bee'][::1 if split == 'train' else -1]"
    test = read(f"{body}; return found", "test")
    assert test.targets.tolist() == [1, 0] and test.class_names == ("ant", "bee")
    without = "found = Pairs(([1.0], 1 / (split == 'test'))); return found"  # train fails, and is not asked for
    assert read(without, "test").class_names is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", r"code_0:data\('train'\) returns None, wanted a torch Dataset"),
        ("return (x for x in [])", "returns a generator, wanted a torch Dataset with a length and items"),
        ("return Pairs()", "has no item"),
        ("raise OSError('no disk')", r"code_0:data\('train'\) fails: OSError: no disk"),
        ("return Boom()", "item 2 fails: ZeroDivisionError"),
        ("return Pairs((image(1), 0), image(1))", r"item 1 is uint8 \[3, 4, 5\], wanted a pair"),
        ("return Pairs((image(1), 0, 0))", "item 0 is a tuple, wanted a pair"),
        ("return Pairs(('text', 0))", r"item 0: the input is a str, wanted an image, uint8 \[C, H, W\], floats, or"),
        ("return Pairs((torch.ones(3, dtype=torch.bool), 0))", r"item 0: the input is bool \[3\], wanted"),
        ("return Pairs((image(1)[0], 0))", r"item 0: the input is uint8 \[4, 5\], wanted"),
        ("return Pairs(([[1.0], [1.0, 2.0]], 0))", "item 0: the input is a list, wanted"),
        ("return Pairs((image(1), None))", "item 0: the target is None, wanted a label"),
        ("return Pairs((image(1), torch.arange(3)))", r"item 0: the target is int64 \[3\], wanted a label"),
        (
            "return Pairs((image(1), 0), (image(1), 0.5))",
            r"item 1: the target is float32 \[\], but that of item 0 int64",
        ),
        (
            "return Pairs((image(1), 0), (image(1, 1), 0))",
            r"item 1: the input is uint8 \[1, 4, 5\], but that of item 0 uint8 \[3, 4, 5\]",
        ),
        ("return Pairs((image(1), 0), (image(1), -1))", "item 1: the target is -1"),
        ("return Pairs(([1.0], 0), ([float('nan')], 0))", r"item 1: the input is \[nan\]"),
        ("return Pairs(([1.0], 0.0), ([1.0], float('inf')))", "item 1: the target is inf"),
    ],
)
def test_what_does_not_fit_is_named(read, body, message):
    with pytest.raises(DataError, match=message):
        read(body)


@pytest.mark.parametrize("shape", [(3,), (6, 6)])
def test_several_labels_an_example_are_said_to_have_no_loss(read, shape):
    with pytest.raises(DataError, match="wanted a label") as caught:
        read(f"return Pairs((image(1), torch.zeros({shape}, dtype=torch.int64)))")
    assert "no loss for several labels an example" in caught.value.hint


def test_an_image_of_pillow_is_told_how_to_become_a_tensor(read):
    with pytest.raises(DataError, match="the input is a Image, wanted an image, uint8") as caught:
        read("from PIL import Image; return Pairs((Image.new('L', (3, 3)), 0))")
    assert "PILToTensor" in caught.value.hint


def test_a_module_that_is_not_there(tmp_path):
    with pytest.raises(SpecError, match="data.format: there is no module 'nowhere'"):
        read_dataset(DataSpec(format="python:nowhere:data"), "train", root=tmp_path, folder=tmp_path)


def test_whole_numbers_are_given_to_the_model_as_they_are(read):
    found = read("return Pairs((torch.tensor([3, 70_000]), 1), (torch.tensor([0, 5], dtype=torch.int32).long(), 0))")
    assert found.inputs.dtype == torch.int64 and found.inputs.tolist() == [[3, 70_000], [0, 5]]
    batch, labels = next(Examples(found, (0.5,), (0.5,)).on(Compute(torch.device("cpu"))).in_order())
    assert torch.equal(batch, found.inputs) and labels.tolist() == [1, 0]
    with pytest.raises(DataError, match="the input is a dict") as caught:
        read("return Pairs(({'a': torch.ones(2)}, 1))")
    assert "taken apart in forward" in caught.value.hint
