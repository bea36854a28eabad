"""Names of weights to names of a model."""

import re

import pytest

from coral.errors import ConfigError
from coral.integrations.pytorch._matching import match_names


def test_names_that_are_equal_belong_together_and_the_rest_is_unexpected():
    found = match_names(["b", "x", "a"], ["a", "b", "c"])
    assert list(found.sources.items()) == [("a", "a"), ("b", "b")]  # in the model's order
    assert found.unexpected == ["x"]


@pytest.mark.parametrize(
    "given", ["fc.weight", "module.fc.weight", "_orig_mod.fc.weight", "module._orig_mod.fc.weight"]
)
@pytest.mark.parametrize(
    "known", ["fc.weight", "module.fc.weight", "_orig_mod.module.fc.weight", "fc._orig_mod.weight"]
)
def test_what_wrappers_add_is_understood_in_weights_and_in_models(given, known):
    assert match_names([given], [known]) == ({known: given}, [])


def test_a_model_with_a_part_that_is_called_module_keeps_its_names_apart():
    names = ["weight", "module.weight", "a.module.w", "a.w"]
    assert match_names(names, names).sources == {name: name for name in names}
    assert match_names(["_orig_mod.a.w"], names) == ({}, ["_orig_mod.a.w"])  # nobody knows which one is meant


def test_a_tensor_that_is_called_module_is_not_taken_for_a_wrapper():
    assert match_names(["a.module"], ["a"]) == ({}, ["a.module"])


@pytest.mark.parametrize(
    "key_map",
    [
        {"old.w": "new.w", "not there": "b"},
        lambda name: name.replace("old.", "new."),
        [(r"^old\.", "new.")],
        [(re.compile("^old"), "older"), (r"^older\.(.*)$", r"new.\1")],  # one after the other
    ],
)
def test_a_key_map_renames_weights(key_map):
    assert match_names(["old.w", "b"], ["new.w", "b"], key_map) == ({"new.w": "old.w", "b": "b"}, [])


def test_what_is_unexpected_is_named_as_the_weights_name_it():
    assert match_names(["old"], ["w"], {"old": "new"}).unexpected == ["old"]


def test_a_prefix_takes_what_is_below_it_and_leaves_the_rest_alone():
    given = ["encoder.w", "encoder2.w", "decoder.w", "w", "module.encoder.b"]
    for prefix in ["encoder", "encoder."]:
        assert match_names(given, ["w", "b"], prefix=prefix) == ({"w": "encoder.w", "b": "module.encoder.b"}, [])


def test_a_key_map_sees_names_without_the_prefix():
    assert match_names(["encoder.old"], ["w"], {"old": "w"}, "encoder").sources == {"w": "encoder.old"}


@pytest.mark.parametrize(
    ("given", "key_map"),
    [
        (["a", "b"], {"a": "w", "b": "w"}),
        (["w", "b"], {"b": "w"}),
        (["w", "module.w"], None),
        (["a", "b"], {"a": "x", "b": "x"}),  # even where the model has no such name
    ],
)
def test_two_weights_under_one_name_are_an_error_that_names_them(given, key_map):
    with pytest.raises(ConfigError, match=f"{given[0]} and {re.escape(given[1])} as [wx]"):
        match_names(given, ["w"], key_map)


@pytest.mark.parametrize(
    ("key_map", "words"),
    [
        (7, "a dict, a function, or a list"),
        ("ab", "a dict, a function, or a list"),
        ([("a", "b", "c")], "a dict, a function, or a list"),
        ([("(", "b")], "no regex"),
        ([("a", r"\3")], "cannot put"),
        (lambda name: None, "makes None of 'a'"),
        ({"a": 3}, "makes 3 of 'a'"),
    ],
)
def test_a_key_map_that_is_none_says_so(key_map, words):
    with pytest.raises(ConfigError, match=words):
        match_names(["a"], ["a"], key_map)
