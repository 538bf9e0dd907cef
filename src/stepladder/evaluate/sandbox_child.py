"""The program that shuts itself in and then runs what it was handed; ``sandbox.py`` starts it and keeps its promises.

Run by its path with -I -S; it imports nothing of ours. Three processes come of it. The *warden* makes the namespaces,
obeys the parent (stdin at its end means: end everything) and never enters the process namespace itself. *Init* is
process 1 in there: when it ends, the kernel kills whatever else lives in the namespace. The *inmate* runs the program.

The warden says one JSON object a line on stdout: ``{"unshared": true}``, upon which the parent writes the id maps and
answers with a line, then ``{"ready": true}`` or ``{"error": "..."}``.
"""

# Started twice for every answer graded, hence without pathlib.
# ruff: noqa: PTH103, PTH110, PTH112, PTH114, PTH115, PTH118, PTH120, PTH123, PTH211
from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

Job = dict[str, Any]

CLONE_FLAGS = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""New namespaces of mounts, host name, IPC, users, processes and network."""

MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
SYS_MOUNT_SETATTR = 442  # the same number on all architectures
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 36, 38
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
KEYCTL_JOIN_SESSION_KEYRING = 1
CAPABILITY_VERSION_3 = 0x20080522
MOST_CAPABILITIES = 64

INNER_ID = 1
"""User and group of the inmate inside its user namespace."""

LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
ROOM = "/tmp"  # noqa: S108 - the inmate's own, in a file system of its own
FIRST_FREE_FD = 3
HIGH_FD = 200
ALIVE_AFTER_INIT = 2
"""Init and the inmate itself count as processes too."""

libc = ctypes.CDLL(None, use_errno=True)


class MountAttr(ctypes.Structure):
    """The kernel's ``struct mount_attr``."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def main() -> None:
    """The warden's life."""
    job: Job = json.loads(read_line(0))
    try:
        if job["confined"]:
            enter_namespaces()
            wall_in(job["directory"])
        else:
            libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            os.chdir(job["directory"])
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            live(job, ready, told)
        os.close(told)
        for fd in job["fds"]:
            os.close(fd)
        failure = os.read(ready, 4096)
    except OSError as error:
        say({"error": f"{error.filename or ''} {error.strerror}".strip()})
        return
    say({"error": failure.decode("utf-8", "replace")} if failure else {"ready": True})
    watch(child, job["confined"])


def live(job: Job, ready: int, told: int) -> None:
    """Init's life (where confined), or the inmate's; never returns."""
    try:
        os.close(ready)
        os.set_inheritable(told, False)
        resign(job)
        if job["confined"]:
            mind_inmate(told, job["fds"])
        keep = settle(job, told)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the warden must hear of it
        os.write(told, f"{type(error).__name__}: {error}".encode()[:4000])
        os._exit(1)
    serve(job, keep)


def serve(job: Job, fds: list[int]) -> None:
    """Run the program as the inmate; never returns."""
    try:
        space = {"__name__": "__main__", "JOB": job["argument"], "FDS": fds}
        exec(compile(job["program"], "<confined>", "exec"), space)  # noqa: S102 - this is what the walls are for
    finally:
        os._exit(0)


# ── the walls ────────────────────────────────────────────────────────────────


def enter_namespaces() -> None:
    """Leave the parent's namespaces; the parent then maps the user ids, which only it can."""
    checked(libc.unshare(CLONE_FLAGS), "unshare")
    say({"unshared": True})
    read_line(0)
    with contextlib.suppress(OSError):  # first to go where memory runs out; forbidden in some containers
        write("/proc/self/oom_score_adj", "1000")
    write("/proc/sys/user/max_user_namespaces", "0")  # else the inmate could be root again, in a namespace of its own


def wall_in(root: str) -> None:
    """Make ``root`` a file system with libraries to read and one small directory to write in, and nothing else."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=4096,mode=755")
    for path in library_paths():
        show(path, root)
    for path in DEVICES:
        show(path, root, ATTR_RDONLY | ATTR_NOSUID | ATTR_NOEXEC)
    room = root + ROOM
    os.makedirs(room)
    mount("tmpfs", room, "tmpfs", MS_NOSUID | MS_NODEV, "size=16m,nr_inodes=1024,mode=1777")
    restrict(room, ATTR_NOEXEC)
    restrict(root, ATTR_RDONLY, recursive=False)
    os.chdir(root)
    checked(libc.pivot_root(b".", b"."), "pivot_root")
    checked(libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir(ROOM)


def library_paths() -> Iterator[str]:
    """What Python needs: its standard library, and the system's libraries that it loads."""
    seen: list[str] = []
    for path in (*LIBRARIES, os.path.join(sys.base_prefix, "lib"), *sys.path):
        real = os.path.realpath(path)
        if os.path.islink(path) and path in LIBRARIES:
            yield path
        elif os.path.exists(path) and not any(is_within(real, one) for one in seen):
            seen.append(real)
            yield path


def is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def show(path: str, root: str, attributes: int = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV) -> None:
    """Let ``path`` be seen under ``root``, to read only."""
    place = root + path
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.islink(path) and path in LIBRARIES:
        os.symlink(os.readlink(path), place)
        return
    if os.path.isdir(path):
        os.makedirs(place, exist_ok=True)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(path, place, None, MS_BIND | MS_REC)
    restrict(place, attributes)


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    checked(libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount on {target}")


def restrict(target: str, attributes: int, recursive: bool = True) -> None:
    attr = MountAttr(attr_set=attributes)
    flags = AT_RECURSIVE if recursive else 0
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    done = libc.syscall(
        ctypes.c_long(SYS_MOUNT_SETATTR), AT_FDCWD, target.encode(), ctypes.c_uint(flags), ctypes.byref(attr), size
    )
    checked(done, f"mount_setattr on {target}")


# ── what a process may ───────────────────────────────────────────────────────


def resign(job: Job) -> None:
    """Give up every privilege, and set the limits that all processes from here on inherit."""
    if job["confined"]:
        resource.setrlimit(resource.RLIMIT_NPROC, (job["processes"] + ALIVE_AFTER_INIT,) * 2)
        for number in range(MOST_CAPABILITIES):
            libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
        if os.getuid() != INNER_ID:
            os.setgroups([])
            os.setresgid(INNER_ID, INNER_ID, INNER_ID)
            os.setresuid(INNER_ID, INNER_ID, INNER_ID)
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        checked(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    join = SYS_KEYCTL.get(os.uname().machine)
    if join is not None:  # the parent's keyring may hold secrets; where the call is forbidden, it is to the inmate too
        libc.syscall(ctypes.c_long(join), KEYCTL_JOIN_SESSION_KEYRING, None)
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    checked(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "the signal on the parent's death")


def mind_inmate(told: int, fds: list[int]) -> None:
    """Fork the inmate, in which this returns; init itself waits for it and leaves, taking all that is left along."""
    checked(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")  # the inmate may not trace init
    child = os.fork()
    if child == 0:
        return
    for fd in (*fds, told, 0, 1):
        os.close(fd)
    while True:
        try:
            if os.wait()[0] == child:
                os._exit(0)
        except ChildProcessError:
            os._exit(0)


def settle(job: Job, told: int) -> list[int]:
    """Close what is not the program's, limit the process, and tell where the program finds its own file descriptors."""
    held = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH_FD) for fd in (*job["fds"], told)]
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    keep = [FIRST_FREE_FD + place for place in range(len(job["fds"]))]
    os.closerange(FIRST_FREE_FD, HIGH_FD)
    for fd, new in zip(held, keep, strict=False):
        os.dup2(fd, new)
    os.dup2(held[-1], told_at := FIRST_FREE_FD + len(keep), inheritable=False)
    os.closerange(told_at + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    limit(job)
    os.close(told_at)
    return keep


def limit(job: Job) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: job["memory_bytes"],
        resource.RLIMIT_FSIZE: job["file_bytes"],
        resource.RLIMIT_NOFILE: job["open_files"],
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for name, most in limits.items():
        resource.setrlimit(name, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_s"], job["cpu_s"] + 1))


# ── watching ─────────────────────────────────────────────────────────────────


def watch(child: int, confined: bool) -> None:
    """Wait until the inmate is done or the parent says the end, and leave nothing behind."""
    with contextlib.suppress(ProcessLookupError):
        done = os.pidfd_open(child)
        poll = select.poll()
        poll.register(done, select.POLLIN)
        poll.register(0, select.POLLIN | select.POLLHUP)
        poll.poll()
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not confined:
        end_orphans()


def end_orphans() -> None:
    """Kill what the program left: as their reaper we are the parent of all whose parents are gone."""
    with contextlib.suppress(ChildProcessError):
        while True:
            with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as children:
                for pid in children.read().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            os.waitpid(-1, 0)


def checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def say(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def read_line(fd: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(fd, 65536)
        if not piece:
            os._exit(0)  # the parent is gone
        line += piece
    return line


if __name__ == "__main__":
    main()
