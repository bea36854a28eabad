from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from coral.errors import ConfigError
from coral.training._config import DEFAULT_CONFIG, CheckpointConfig


def build(**options: Any) -> CheckpointConfig:
    """A config from values of any type, right or wrong."""
    return CheckpointConfig(**options)


def test_the_bare_config_has_every_trigger_and_budget_off() -> None:
    config = CheckpointConfig()
    off = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) is None}
    assert off == {
        "save_every_n_steps",
        "save_every_n_epochs",
        "save_every_seconds",
        "save_on_best_metric",
        "keep_last_n_checkpoints",
        "keep_best_n_checkpoints",
        "keep_checkpoint_every_n_epochs",
        "early_stopping_patience",
    }


def test_the_default_config() -> None:
    expected = CheckpointConfig(
        save_every_n_epochs=1, save_on_best_metric="loss", keep_last_n_checkpoints=5, keep_best_n_checkpoints=3
    )
    assert expected == DEFAULT_CONFIG


@pytest.mark.parametrize("name", ["save_every_n_steps", "save_every_n_epochs", "keep_checkpoint_every_n_epochs"])
def test_a_cadence_of_zero_is_off(name: str) -> None:
    assert getattr(build(**{name: 0}), name) == 0


@pytest.mark.parametrize(
    "name",
    [
        "save_every_n_steps",
        "save_every_n_epochs",
        "keep_checkpoint_every_n_epochs",
        "keep_last_n_checkpoints",
        "keep_best_n_checkpoints",
        "early_stopping_patience",
    ],
)
@pytest.mark.parametrize("value", [-1, True, 1.0, "1"])
def test_a_whole_number_is_an_int_and_not_negative(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        build(save_on_best_metric="loss", **{name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)
    assert "1 or more" in str(caught.value)


@pytest.mark.parametrize("name", ["keep_last_n_checkpoints", "keep_best_n_checkpoints", "early_stopping_patience"])
def test_zero_is_no_budget_and_the_message_says_to_use_none(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is 0; .* or None for no"):
        build(save_on_best_metric="loss", **{name: 0})


@pytest.mark.parametrize("name", ["save_every_seconds", "best_threshold", "early_stopping_threshold"])
@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf, True, "1"])
def test_a_number_is_finite_and_not_negative(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is .*; it must be .*0 or more"):
        build(**{name: value})


@pytest.mark.parametrize("name", ["best_threshold", "early_stopping_threshold"])
def test_a_threshold_is_not_none(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        build(**{name: None})


def test_numbers_may_be_ints() -> None:
    assert CheckpointConfig(save_every_seconds=600, best_threshold=0, early_stopping_threshold=1).best_threshold == 0


@pytest.mark.parametrize("name", ["keep_best_n_checkpoints", "early_stopping_patience"])
def test_what_needs_a_metric_says_so(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is 3, but save_on_best_metric is None"):
        build(**{name: 3})


@pytest.mark.parametrize("metric", ["", " ", 3])
def test_a_metric_has_a_name(metric: Any) -> None:
    with pytest.raises(ConfigError, match="save_on_best_metric"):
        CheckpointConfig(save_on_best_metric=metric)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(CheckpointConfig) if isinstance(f.default, bool)])
def test_a_flag_is_a_bool(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is 1; it must be True or False"):
        build(**{name: 1})
    assert getattr(build(**{name: False}), name) is False


@pytest.mark.parametrize("value", ["full", "batch", "fast"])
def test_durabilities(value: Any) -> None:
    assert CheckpointConfig(durability=value).durability == value


@pytest.mark.parametrize("value", ["none", "", None])
def test_other_durabilities_raise(value: Any) -> None:
    with pytest.raises(ConfigError, match=r'durability is .*"full", "batch" and "fast"'):
        CheckpointConfig(durability=value)


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{loss}", "{loss}"),
        ("{}", "{}"),
        ("{0}", "{0}"),
        ("{step.real}", "{step.real}"),
        ("{step:{width}}", "width"),
        ("{step", "expected '}'"),
        ("{reasons:d}", "format code"),
        (None, "None"),
    ],
)
def test_a_bad_template_names_what_is_wrong_and_what_is_allowed(template: Any, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CheckpointConfig(commit_message_template=template)
    assert named in str(caught.value)
    assert "{experiment}, {step}, {epoch}, {reasons}, {metrics}" in str(caught.value)


def test_the_commit_message() -> None:
    config = CheckpointConfig(commit_message_template="{experiment} {step:04d} {epoch:>3} {reasons} {metrics}")
    message = config.commit_message(
        experiment="run", step=7, epoch=2, reasons={"step", "best"}, metrics={"val": 0.25, "acc": 1.0}
    )
    assert message == "run 0007   2 best, step acc=1, val=0.25"


def test_the_default_message_and_an_unknown_epoch() -> None:
    def message(config: CheckpointConfig) -> str:
        return config.commit_message(experiment="run", step=7, epoch=None, reasons=["final"], metrics={})

    assert message(CheckpointConfig()) == "run: step 7 (final)"
    assert message(CheckpointConfig(commit_message_template="{{{epoch}}}")) == "{-}"


def test_a_config_is_a_value() -> None:
    assert CheckpointConfig(1, 2) == CheckpointConfig(save_every_n_steps=1, save_every_n_epochs=2)
    assert hash(CheckpointConfig(1)) == hash(CheckpointConfig(1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        CheckpointConfig().durability = "fast"  # type: ignore[misc]
