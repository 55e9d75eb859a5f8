import pytest

from glue_cli.data.split_names import find_split, split_name
from glue_cli.foundation.errors import SpecError
from glue_cli.spec.schema import DataSpec


def data(**splits):
    return DataSpec(format="image-folder", root=".", splits=splits)


def found(spec, *there):
    return [find_split(spec, split, there.__contains__) for split in ("train", "val", "test")]


@pytest.mark.parametrize("name", ["val", "validation", "valid", "dev"])
def test_a_validation_split_is_found_by_any_usual_name(name):
    assert found(data(), "train", name, "test") == ["train", name, "test"]
    assert found(data(), "validate", "test") == ["train", None, "test"]
    assert found(data(), "dev", "valid", "val") == ["train", "val", "test"]


def test_the_spec_decides():
    assert found(data(val="other", test="exam"), "val") == ["train", "other", "exam"]
    assert found(data(test="val"), "val") == ["train", None, "val"]  # which is then no validation split
    assert found(data(test="val"), "val", "dev") == ["train", "dev", "val"]


def test_a_name_that_another_split_has_taken():
    with pytest.raises(SpecError, match="gives the name 'test' to another split, so there is no test split"):
        split_name(data(val="test"), "test")
