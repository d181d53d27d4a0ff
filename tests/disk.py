"""A disk that loses power: system calls of a traced process, replayed under the weakest promises that POSIX gives.

What a process wrote is on the disk when it has synced that file, and a name when its folder was synced; before that any
sectors of 512 bytes may be there or not, and any number of the folder's changes, in their order.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
CALLS = "openat,open,creat,write,pwrite64,ftruncate,fsync,fdatasync,unlink,unlinkat,rename,renameat,renameat2,link,linkat,mkdir,close"
_LINE = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FD = re.compile(r"^(\d+)<")


@dataclass
class File:
    """A file's synced content, and the writes and cuts since."""

    synced: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # None cuts at the offset

    def sync(self) -> None:
        self.synced, self.pending = self.content([True] * sum(_sectors(p) for p in self.pending)), []

    def content(self, kept: list[bool]) -> bytearray:
        """The content when of all pending sectors some were kept."""
        data, chosen = bytearray(self.synced), iter(kept)
        for offset, part in self.pending:
            if part is None:
                if next(chosen):
                    del data[offset:]
                    data.extend(bytes(offset - len(data)))
                continue
            for start in range(0, len(part), SECTOR):
                piece = part[start : start + SECTOR]
                if next(chosen):
                    end = offset + start + len(piece)
                    data.extend(bytes(max(0, end - len(data))))
                    data[offset + start : end] = piece
        return data

    def sectors(self) -> int:
        return sum(_sectors(p) for p in self.pending)


def _sectors(pending: tuple[int, bytes | None]) -> int:
    return 1 if pending[1] is None else -(-len(pending[1]) // SECTOR)


@dataclass
class Folder:
    """A folder's synced names, and their changes since: (name, what it now names or None)."""

    synced: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[list[tuple[str, File | Folder | None]]] = field(default_factory=list)

    def names(self, kept: int) -> dict[str, File | Folder]:
        """The names when so many of the pending changes were kept."""
        names = dict(self.synced)
        for change in self.pending[:kept]:
            for name, target in change:
                if target is None:
                    names.pop(name, None)
                else:
                    names[name] = target
        return names

    def now(self) -> dict[str, File | Folder]:
        return self.names(len(self.pending))

    def sync(self) -> None:
        self.synced, self.pending = self.now(), []


class Disk:
    """The files below one folder, as a trace changes them."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, Folder()
        self._fds: dict[int, list[object]] = {}  # file or folder, position
        self.acknowledged = 0

    def follow(self, line: str) -> bool:
        """Apply one line of the trace; return whether it changed anything that a crash could show."""
        found = _LINE.match(line)
        if not found or found[3].startswith("-"):
            return False
        call, arguments, result = found[1], found[2], int(found[3])
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(arguments)]
        fd = int(m[1]) if (m := _FD.match(arguments)) else -1
        if call == "write" and fd == 1:
            self.acknowledged = int(texts[0].split()[-1])
            return True
        if call in ("open", "openat", "creat"):
            return self._open(texts[0].decode(), arguments, result)
        if call == "close":
            self._fds.pop(fd, None)
            return False
        if call in ("write", "pwrite64", "ftruncate", "fsync", "fdatasync"):
            return fd in self._fds and self._on_fd(call, fd, arguments, texts, result)
        return self._on_names(call, [text.decode() for text in texts])

    def _open(self, path: str, flags: str, fd: int) -> bool:
        self._fds.pop(fd, None)
        place = self._place(path)
        if place is None:
            return False
        folder, name = place
        if not name:
            self._fds[fd] = [folder, 0]
            return False
        target, changed = folder.now().get(name), False
        if target is None:
            target, changed = File(), True
            folder.pending.append([(name, target)])
        if "O_TRUNC" in flags and isinstance(target, File):
            target.pending.append((0, None))
        self._fds[fd] = [target, 0]
        return changed

    def _on_fd(self, call: str, fd: int, arguments: str, texts: list[bytes], result: int) -> bool:
        target, position = self._fds[fd]
        if call in ("fsync", "fdatasync"):
            target.sync()  # type: ignore[attr-defined]
            return True
        assert isinstance(target, File)
        if call == "ftruncate":
            target.pending.append((int(arguments.rsplit(", ", 1)[1]), None))
            return True
        offset = int(arguments.rsplit(", ", 1)[1]) if call == "pwrite64" else position
        assert len(texts[0]) >= result, "the trace was cut"
        target.pending.append((offset, texts[0][:result]))  # type: ignore[arg-type]
        if call == "write":
            self._fds[fd][1] += result  # type: ignore[operator]
        return True

    def _on_names(self, call: str, paths: list[str]) -> bool:
        places = [self._place(path) for path in paths]
        if None in places or not places:
            return False
        (folder, name), (other, new) = places[0], places[-1]  # type: ignore[misc]
        if call == "mkdir":
            if name:  # the top folder is there before
                folder.pending.append([(name, Folder())])
        elif call.startswith("unlink"):
            folder.pending.append([(name, None)])
        elif call.startswith("link"):
            other.pending.append([(new, folder.now()[name])])
        else:
            assert folder is other and call.startswith("rename")
            folder.pending.append([(new, folder.now()[name]), (name, None)])
        return True

    def _place(self, path: str) -> tuple[Folder, str] | None:
        try:
            parts = Path(path).relative_to(self.root).parts
        except ValueError:
            return None
        folder: Folder = self.top
        for number, part in enumerate(parts):
            inner = folder.now().get(part)
            if isinstance(inner, Folder):
                folder = inner
            elif number < len(parts) - 1:
                return None
            else:
                return folder, part
        return folder, ""

    def crash(self, draw: random.Random, how: str) -> dict[str, bytes]:
        """Return files and contents as they may be found after power is lost now."""
        return dict(self._left(self.top, "", draw, how))

    def _left(self, folder: Folder, prefix: str, draw: random.Random, how: str) -> Iterator[tuple[str, bytes]]:
        kept = {"nothing": 0, "files": 0, "everything": len(folder.pending), "names": len(folder.pending)}.get(how)
        names = folder.names(draw.randint(0, len(folder.pending)) if kept is None else kept)
        for name, target in names.items():
            if isinstance(target, Folder):
                yield from self._left(target, f"{prefix}{name}/", draw, how)
            else:
                yield f"{prefix}{name}", bytes(target.content(_kept(target.sectors(), draw, how)))


def _kept(sectors: int, draw: random.Random, how: str) -> list[bool]:
    if how in ("nothing", "names"):
        return [False] * sectors
    if how in ("everything", "files"):
        return [True] * sectors
    share = draw.choice((0.2, 0.5, 0.8))
    return [draw.random() < share for _ in range(sectors)]


HOWS = ("nothing", "everything", "files", "names")  # then torn sectors and a part of the names, again and again


def traced(script: str, folder: Path, *, trace: Path) -> list[str]:
    """Run a Python script on a folder under strace and return the lines of the trace."""
    command = ["strace", "-y", "-xx", "-s", "1000000", "-e", f"trace={CALLS}", "-o", str(trace)]
    command += [sys.executable, "-c", script, str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300)
    return trace.read_text().splitlines()


def states(lines: list[str], folder: Path, number: int, seed: int) -> Iterator[tuple[dict[str, bytes], int]]:
    """Yield at least `number` states after a loss of power, with what had been acknowledged before each."""
    draw, points = random.Random(seed), 0
    disk = Disk(folder)
    for line in lines:
        points += disk.follow(line)
    each = max(len(HOWS), -(-number // points))
    disk = Disk(folder)
    for line in lines:
        if disk.follow(line):
            for count in range(each):
                yield disk.crash(draw, HOWS[count] if count < len(HOWS) else "torn"), disk.acknowledged
