import pytest

from glue_cli.foundation import errors


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("UsageError", 2),
        ("SpecError", 3),
        ("CheckpointError", 3),
        ("DataError", 3),
        ("NumericalError", 4),
        ("ResourceError", 5),
        ("GateMissedError", 6),
    ],
)
def test_exit_codes(name, code):
    error = getattr(errors, name)("what is wrong", items=["here", "there"], hint="do this")
    assert isinstance(error, errors.GlueError) and error.exit_code == code
    assert (str(error), error.message, error.items, error.hint) == (
        "what is wrong",
        "what is wrong",
        ("here", "there"),
        "do this",
    )


def test_all_faults_of_a_spec_are_shown_and_few_of_other_kinds():
    shown = {error.n_shown for error in errors.GlueError.__subclasses__() if error is not errors.SpecError}
    assert errors.SpecError.n_shown is None and shown == {5}
