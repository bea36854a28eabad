"""docs/events.md names every event, and no field that an event does not have."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from coral.training import Event

PAGE = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("event", get_args(Event), ids=lambda event: event.__name__)
def test_the_page_names_an_event_with_its_fields(event: type) -> None:
    (said,) = re.findall(rf"`{event.__name__}\(([a-z_, ]*)\)`", PAGE)
    assert said.split(", ") == [field.name for field in fields(event)]
