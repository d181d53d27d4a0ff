"""Placeholder until the page is drawn."""
from collections.abc import Mapping
from typing import Any


def render(facts: Mapping[str, Any]) -> str:
    return "<html></html>"
