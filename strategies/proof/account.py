"""What was reserved on one data root, kept so that asking for the sum costs the same after any number of rounds."""

from __future__ import annotations

from dataclasses import dataclass, field

from strategies.privacy.dataroot import DataRoot
from strategies.privacy.events import Event, Gaussian, merge


@dataclass(kw_only=True)
class Account:
    """What was reserved on one data root.

    Args:
        root: its registration; None for what a restore adopted before the root was registered again.
        reserved: run and events of each reservation in order; the run of what a restore adopted is "".
    """

    root: DataRoot | None = None
    reserved: list[tuple[str, tuple[Event, ...]]] = field(default_factory=list)
    _steps: dict[tuple[float, float], int] = field(default_factory=dict)
    _others: tuple[Event, ...] = ()

    def add(self, run: str, events: tuple[Event, ...]) -> None:
        """Count one more reservation."""
        self.reserved.append((run, events))
        for event in events:
            if isinstance(event, Gaussian):
                key = (event.noise_multiplier, event.sampling_rate)
                self._steps[key] = self._steps.get(key, 0) + event.steps
            else:
                self._others = merge((*self._others, event))

    def merged(self) -> tuple[Event, ...]:
        """Return all events, equal ones added up; its length does not grow with the number of rounds."""
        steps = sorted(self._steps.items())  # in the order of `merge`
        return (*[Gaussian(noise_multiplier=s, sampling_rate=q, steps=t) for (s, q), t in steps if t], *self._others)
