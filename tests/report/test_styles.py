"""A method styles the same everywhere, and like no other."""

import pytest

from glue_cli.report.styles import _KNOWN, GREY, base_of, styles_of


def line(look):
    return look.color, look.marker, look.dash, look.hollow


def test_no_two_methods_look_alike_even_in_grey():
    labels = [*_KNOWN, "spsa-n8", "spsa-far", "mine", "other"]
    styles = styles_of(labels)
    assert len({line(look) for look in styles.values()}) == len(labels)
    assert len({line(look)[1:] for look in styles.values()}) == len(labels)  # without the colour
    assert len({look.name for look in styles.values()}) == len(labels)


def test_a_methods_look_does_not_depend_on_the_others():
    assert styles_of(["spsa"])["spsa"] == styles_of(list(_KNOWN))["spsa"]


def test_a_variant_has_its_methods_colour_and_place():
    styles = styles_of(["scratch", "spsa-n8", "mine", "fullgrad", "spsa"])
    assert list(styles) == ["fullgrad", "spsa", "spsa-n8", "scratch", "mine"]
    assert styles["spsa-n8"].color == styles["spsa"].color
    assert styles["mine"].color == GREY


def test_a_variant_is_named_after_its_method():
    styles = styles_of(["spsa-n2-same-forwards", "spsa-n8", "mine"])
    assert [look.name for look in styles.values()] == ["GLUE (SPSA), n8", "GLUE, 2 directions, same forwards", "mine"]


@pytest.mark.parametrize(
    ("label", "base"), [("spsa-n2-forwards", "spsa-n2"), ("data-size", "data-size"), ("spsax", "spsax")]
)
def test_what_a_label_is_a_variant_of(label, base):
    assert base_of(label) == base
