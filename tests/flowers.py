"""Flower's own strategies as oracles: one round of theirs on updates of ours."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity


def in_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages only inside a task; some of its rules collect garbage for each, which takes long here."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def flower_round(
    theirs: Any, number: int, model: np.ndarray, updates: list[np.ndarray], weights: list[float]
) -> np.ndarray:
    """Flower averages models, not updates; its configure_train keeps the model that it sends."""
    if not hasattr(theirs, "server_momentum"):
        theirs.current_arrays = {"w": model}
    elif theirs.current_arrays is None:  # FedAvgM goes on from its own model
        theirs.current_arrays = ArrayRecord({"w": Array(model)})
    replies = []
    for update, weight in zip(updates, weights, strict=True):
        content = RecordDict(
            {"arrays": ArrayRecord({"w": Array(model + update)}), "metrics": MetricRecord({"num-examples": weight})}
        )
        replies.append(Message(content=content, dst_node_id=1, message_type="train"))
    arrays, _ = theirs.aggregate_train(number, replies)
    return arrays["w"].numpy()
