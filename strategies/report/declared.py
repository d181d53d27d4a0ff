"""The sentences that both reports must say (PRIVACY fields 3, 9, 11, 12, 14): who is trusted, what is not covered, what
would void the claim. They are facts of this version of the program, so they stand in the JSON too."""

from __future__ import annotations

from strategies.sections import Mechanism

VOID = (
    "The silo runs other code than this version, or a changed one: clipping, noise and sampling are then not what is "
    "accounted.",
    "The operating system's random numbers can be predicted, or the memory of the silo's process can be read.",
    "Records of one unit carry several identifiers, so that one person is several units.",
    "The same records are used outside this ledger: under another ledger, by other software, or for results that were "
    "published otherwise.",
    "The ledger does not verify, or was rolled back and restored without all that was released.",
)
SUPPORT = (
    "This page supports a data-protection impact assessment (GDPR Art. 35) and an expert's determination (45 CFR "
    "164.514(b)(1)); it replaces neither. Deleting a person's record does not take back what was released."
)
TUNING = (
    "Choices made with the help of these records are covered only where they were runs in this ledger: every run "
    "is charged, also those whose model was thrown away, so a search over settings is the sum of its runs. "
    "Looking at the "
    "records by other means (features, bounds, early stopping by eye) is not accounted."
)
CONTRADICTED = "contradicted"  # status of an audit that found more than is claimed
AUDIT = {
    "status": "not run",
    "reason": "no audit of the running mechanism stands in this page (fedsilo-simulate audit makes one); what is "
    "guaranteed rests on the accounting and on the tests of the code",
}
FLOATING_POINT = (
    "sums and noise lie on a grid of 2^-20 clip norms, so low bits give nothing away (Mironov 2012); for the distance "
    "that rounding can add, 2^-10 clip norms in the sum and sqrt(d) 2^-20 clip norms on the grid (d parameters), the "
    "noise is that much wider, and no epsilon is lowered for it"
)
NOISE = (
    "AES-256-CTR keyed by the operating system, Gaussian by Box and Muller in float64; on a GPU Philox-4x32-10 "
    "with a new "
    "64-bit key from the operating system for each step; no seed of a file or message reaches it"
)
AT_ORDER = "a Rényi filter of one fixed order: it stays valid when later studies depend on earlier results"
BY_PLAN = "preregistered: the whole plan was named at registration, and releases are taken from it and nothing else"


FLOATING_POINT_OF_SUMS = (
    "sums and noise lie on a grid of 2^-20 clip norms, so low bits give nothing away (Mironov 2012); for the distance "
    "that rounding can add, at most 2 sqrt(d) 2^-20 clip norms (d parameters), the noise is that much wider, and no "
    "epsilon is lowered for it"
)
CENTRAL = (
    "Of a study with mechanism 'central-gaussian' the server saw more than is counted here: the numbers hold against "
    "everybody else, and this silo's policy says that the server is trusted."
)
_SETTING: dict[Mechanism, str] = {
    "dp-sgd": "local: each silo adds all of its noise itself, before anything leaves; the guarantee needs no trust in "
    "the server",
    "local-gaussian": "local: each silo clips and noises its whole update itself, before it leaves; the guarantee "
    "needs no trust in the server",
    "distributed-gaussian": "distributed: each silo adds a share of the noise under its mask; the guarantee needs "
    "secure aggregation, and no more silos that help the server than the study's limit",
    "central-gaussian": "central: the server noises the sum of the clipped updates; the guarantee holds against "
    "everybody but the server",
    "none": "none: there is no noise and no guarantee",
}
_OBSERVED: dict[Mechanism, tuple[str, str]] = {
    "distributed-gaussian": ("sees every sum of updates that {silo} had a part in", "what each silo adds to the sums"),
    "central-gaussian": (
        "is not the server and sees the model after each round that {silo} had a part in",
        "the sequence of models, as a function of each silo's records,",
    ),
}


def trust(mechanism: Mechanism, *, masked: bool) -> list[tuple[str, str]]:
    """Return who sees what, and who is trusted for what."""
    central = mechanism == "central-gaussian"
    seen = "a sum over silos" if masked else "each silo's update by itself"
    duty = (
        "clipped and without noise; it is trusted to add the noise, and to keep to itself what it saw"
        if central
        else "it is trusted for usefulness, not for privacy"
    )
    return [
        ("Setting", _SETTING[mechanism]),
        ("The silo is trusted", "with its records, its keys, and to run this code"),
        ("The server sees", f"{seen}{',' if central else ';'} {duty}"),
        (
            "Other silos see",
            "the model after each round, which is made of what the server sees, and where each silo's ledger stands",
        ),
        ("The public sees", "the final model and this page, if they are published; no more than the server"),
    ]


def observed(mechanism: Mechanism) -> tuple[str, str]:
    """Return of whom the claim speaks ("someone who ..."; `{silo}` is to be filled in), and what is private."""
    return _OBSERVED.get(mechanism, ("sees everything that {silo} sent", "what each silo sent"))
