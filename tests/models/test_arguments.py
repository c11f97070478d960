"""NAME=VALUE as keywords."""

from __future__ import annotations

from typing import Any

import pytest

from fastcnn.errors import RequestError
from fastcnn.models import model_spec
from fastcnn.models.arguments import parse_arguments


def build(width: int, rate: float = 0.5, deep: bool = True, act: str = "relu", untyped=None, *, guessed=3) -> None:
    """Something with every kind of parameter."""


def test_values_have_the_types_of_the_signature():
    values = parse_arguments(build, ["width=5", "rate=1", "deep=no", "act=1", "guessed=4"], "it")
    assert values == {"width": 5, "rate": 1.0, "deep": False, "act": "1", "guessed": 4}
    assert [type(value) for value in values.values()] == [int, float, bool, str, int]
    assert parse_arguments(build, ["deep=TRUE"], "it") == {"deep": True}
    assert parse_arguments(model_spec("googlenet").load_builder(), ["aux-logits=false", "dropout=0.1"], "googlenet") == {
        "aux_logits": False,
        "dropout": 0.1,
    }


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("1e-3", 0.001), ("true", True), ("off", False), ("a=b", "a=b"), ("", "")])
def test_a_parameter_without_a_type(text, value):
    (read,) = parse_arguments(build, [f"untyped={text}"], "it").values()
    assert (read, type(read)) == (value, type(value))


def test_a_function_that_takes_any_name():
    def flexible(**options: Any) -> None:
        """Like timm.create_model."""

    assert parse_arguments(flexible, ["drop_path_rate=0.1"], "it") == {"drop_path_rate": 0.1}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["width"], "a model argument is NAME=VALUE, not 'width'; it takes width, rate, deep, act, untyped, guessed"),
        (["=3"], "a model argument is NAME=VALUE, not '=3'"),
        (["depth=3"], "it takes no argument 'depth'; it takes width, rate, deep, act, untyped, guessed"),
        (["width=3.5"], "the model argument width is a whole number, not '3.5'"),
        (["rate=fast"], "the model argument rate is a number, not 'fast'"),
        (["deep=2"], "the model argument deep is true or false, not '2'"),
        (["width=3", "width=4"], "the model argument width is given twice: 'width=4' is the second"),
    ],
)
def test_wrong_requests(texts, said):
    with pytest.raises(RequestError) as raised:
        parse_arguments(build, texts, "it")
    assert str(raised.value).startswith(said)
