"""Whether a folder's file system keeps what was synced to it when the machine or its container stops.

A budget on tmpfs is whole again after a reboot, one in a container's own layer after an update; a network or FUSE file
system may acknowledge a sync that it has not done, and may not lock. A ledger with durability `power-loss` is not put
there unless silo.toml says so.
"""

from __future__ import annotations

from pathlib import Path

from strategies.errors import SettingError

VOLATILE = frozenset(
    {"tmpfs", "ramfs", "devtmpfs", "overlay", "aufs", "fuse", "fuseblk", "virtiofs", "9p"}
    | {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "afs"}
)
HEAD_ROOM_BYTES = 64 * 2**20  # that much must be free before a round begins
_MOUNTS = Path("/proc/self/mountinfo")


def kind_of(folder: Path, mounts: str | None = None) -> str:
    """Return the type of the file system that holds `folder`, as Linux calls it.

    Args:
        folder: need not exist; its nearest parent that does decides.
        mounts: text in the form of /proc/self/mountinfo (proc(5)); the system's own when omitted.

    Raises:
        SettingError: the system does not say.
    """
    try:
        text = _MOUNTS.read_text(encoding="utf-8", errors="replace") if mounts is None else mounts
    except OSError as error:
        raise SettingError(
            f"the file system of {folder} is not known ({error.strerror}); set ledger.allow_volatile = true "
            "in silo.toml if it survives a loss of power"
        ) from None
    place, best, kind = folder.resolve(), -1, ""
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        point = Path(fields.split()[4].encode().decode("unicode_escape"))
        depth = len(point.parts)
        if place.is_relative_to(point) and depth >= best:  # of two mounts at one place the later one is on top
            best, kind = depth, rest.split()[0]
    if not kind:
        raise SettingError(f"the file system of {folder} is not known; set ledger.allow_volatile = true in silo.toml")
    return kind


def require_durable(folder: Path, mounts: str | None = None) -> None:
    """Return when the folder survives a restart of the machine.

    Raises:
        SettingError: it does not, or that is not known.
    """
    kind = kind_of(folder, mounts)
    if kind.split(".")[0] in VOLATILE:
        raise SettingError(
            f"the ledger's folder {folder} is on {kind}, which may lose or not lock what is written; put the silo on a "
            "local disk, or set ledger.allow_volatile = true in silo.toml if losing the budget is acceptable"
        )
