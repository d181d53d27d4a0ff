"""What a report says of silos that do not follow the code: what the rule withstands, or how far they move a mean."""

from __future__ import annotations

from strategies.base import PerSiloStrategy
from strategies.privacy.silo_level import silos_a_round
from strategies.study import Study

_ANYTHING = "A silo that does not follow the code can send anything: a poisoned or useless update is not detected"


def sentence(study: Study, members: int) -> str:
    """Return what a run over so many silos withstands.

    A mean of n vectors that are each clipped to C moves by at most 2 f C / n when f of them go from one end of the ball
    to the other; a rule that looks at each update holds whatever is sent.
    """
    silos = silos_a_round(study, members)
    strategy, clip_norm = study.strategy, study.file.privacy.clip_norm
    if isinstance(strategy, PerSiloStrategy):
        least = min(silos, study.file.cohort.min_silos)
        return (
            f"{_ANYTHING}. The rule {study.file.strategy.name} keeps the model near what honest silos sent while no "
            f"more than {strategy.withstands(silos)} of {silos} are hostile ({strategy.withstands(least)} of {least} "
            "when others drop out); no single silo is named."
        )
    if study.silo_level:
        clipped_again = study.file.privacy.mechanism == "central-gaussian" and not study.masked
        least = min(silos, study.file.cohort.min_silos)
        most = f"2 f C / n = {2 * clip_norm / silos:.3g} f in L2"
        if least < silos:
            most += f" ({2 * clip_norm / least:.3g} f where others drop out and {least} are left)"
        if study.file.strategy.weights == "declared":
            most = f"2 C = {2 * clip_norm:.3g} times their share of the declared weights of the round, in L2"
        return (
            f"{_ANYTHING}. f hostile ones of {silos} silos that clip as the code does move a round's mean update by at "
            f"most {most}"
            + ("; the server clips each again." if clipped_again else "; one that does not clip is not bounded.")
        )
    return f"{_ANYTHING}, and the mean of a round goes where it pulls."
