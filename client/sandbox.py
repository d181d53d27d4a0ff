"""The training process without a network: it reads records and keys, and has nobody to send them to.

A network namespace of its own has no interface, not even the loopback; pipes to the node, files, and sockets that are
files stay. Root may make one. A user without privileges may make it within a user namespace, where the kernel allows
that (user_namespaces(7)) and stays the same user there; who has some privileges would lose them, so nothing is changed.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # linux/sched.h
_CAPABILITY_VERSION = 0x20080522  # linux/capability.h
_DONE = "done"


def leave_network() -> str:
    """Move this process, while it has one thread, where there is no network; return why that cannot be, or nothing."""
    return _tried() or _leave()


def _tried() -> str:
    """Let a child try it: what ends half-way cannot be undone."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, (_leave() or _DONE).encode())
        except OSError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as answer:
        told = answer.read().decode()
    return "" if told == _DONE else told or "who tries it is killed"


def _leave() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        return "this system has no network namespaces"
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NEW_NETWORK) == 0:  # of root
        return ""
    if _capabilities():
        return "this user has privileges that it would lose"
    if libc.unshare(_NEW_USER | _NEW_NETWORK) != 0:
        return f"the kernel refuses a user namespace: {os.strerror(ctypes.get_errno())}"
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny")
    (own / "uid_map").write_text(f"{user} {user} 1")
    (own / "gid_map").write_text(f"{group} {group} 1")
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, none) != 0:  # a new user namespace gives all capabilities within itself
        raise OSError(ctypes.get_errno(), "capset")
    return ""


def _capabilities() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))


if __name__ == "__main__":
    print(leave_network())
