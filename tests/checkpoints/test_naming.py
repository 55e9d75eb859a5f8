"""Where a model's tensors come from in a checkpoint."""

import pytest
import torch

from glue_cli.checkpoints.naming import Naming, Source

PARTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, 3), "c": torch.zeros(4), "d": torch.ones(1)}
STACK = Source(("b", "a"), torch.stack)
NAMING = Naming({"stack": STACK, "c": Source(("c",)), "tied": Source(("c",)), "first": Source(("d",))}, ("e",))


def test_a_tensor_is_taken_as_it_is_or_made_of_its_parts_in_their_order():
    assert Source(("a",)).take(PARTS) is PARTS["a"]
    assert torch.equal(STACK.take(PARTS), torch.stack([PARTS["b"], PARTS["a"]]))


def test_the_header_tells_what_would_be_made(save):
    entry = STACK.entry(save("x", PARTS))
    assert (entry.dtype, entry.shape, entry.name) == ("F32", (2, 2, 3), "b")
    assert STACK.entry(save("y", PARTS | {"a": torch.ones(3, 3)})) is None


def test_tied_names_are_one_tensor():
    assert [name for name, _ in NAMING.distinct()] == ["stack", "c", "first"]
    assert NAMING.in_memory(PARTS).keys() == {"stack", "c", "first"}


def test_what_lacks_a_part_is_left_out():
    assert NAMING.in_memory({"a": PARTS["a"], "d": PARTS["d"]}) == {"first": PARTS["d"]}


def test_names_on_disk_are_those_of_tensors_as_they_are():
    found = NAMING.on_disk({"first": PARTS["d"], "stack": torch.ones(2, 2, 3), "tied": PARTS["c"], "c": PARTS["c"]})
    assert found == {"d": PARTS["d"], "c": PARTS["c"]}


def test_another_spelling():
    spelled = NAMING.respelled({name: f"module.{name}" for name in "abcde"})
    assert spelled.sources["stack"].names == ("module.b", "module.a") and spelled.unused == ("module.e",)
    with pytest.raises(KeyError):
        NAMING.respelled({"a": "x"})
