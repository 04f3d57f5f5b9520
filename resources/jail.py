"""Runs one Python program under limits that it cannot lift. `resources.sandbox` starts this file as a process.

The job comes as JSON on standard input. The names of the layers in force go to the status descriptor before the
program's first line runs: without them the parent knows that the sandbox, not the program, failed. Linux only.

    limits      rlimits on CPU time, address space, file size, open files and processes; always
    namespace   own user, network, mount and IPC namespaces: no network, a read-only file system with a small tmpfs as
                working directory, no sight of the environment of the host's processes
    landlock    of files outside the working directory only the standard library and shared libraries open
    seccomp     no child process, no socket, no signal to anyone, no tracing; x86-64 only
    audit       stands in for seccomp: Python's own calls for sockets and processes are refused, which stops accidents
                but not code that means to get around it
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import linecache
import os
import resource
import struct
import sys
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_SET_DEATH_SIGNAL, _SET_SECCOMP, _SET_NO_NEW_PRIVILEGES = 1, 22, 38
_NEW_NAMESPACES = 0x00020000 | 0x08000000 | 0x10000000 | 0x40000000
"""CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET."""
_CAPSET_X86_64 = 126
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_WRITE_FILE, _READ_FILE, _READ_DIRECTORY, _EXECUTE = 1 << 1, 1 << 2, 1 << 3, 1 << 0

# Numbers of x86-64. Everything here reaches past the one process: other processes, the network, kernel objects that
# outlive it, or memory that no rlimit counts.
_DENIED = {
    "shmget": 29, "socket": 41, "fork": 57, "vfork": 58, "execve": 59, "semget": 64, "msgget": 68, "ptrace": 101,
    "rt_sigqueueinfo": 129, "setpriority": 141, "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166,
    "tkill": 200, "mq_open": 240, "add_key": 248, "request_key": 249, "keyctl": 250, "ioprio_set": 251,
    "migrate_pages": 256, "unshare": 272, "move_pages": 279, "rt_tgsigqueueinfo": 297, "perf_event_open": 298,
    "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
    "memfd_create": 319, "bpf": 321, "execveat": 322, "userfaultfd": 323, "pidfd_send_signal": 424,
    "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "pidfd_open": 434, "pidfd_getfd": 438,
    "process_madvise": 440, "mount_setattr": 442, "memfd_secret": 447, "process_mrelease": 448,
}  # fmt: skip
_ONLY_ITSELF = {
    "kill": 62, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203, "tgkill": 234,
    "prlimit64": 302, "sched_setattr": 314,
}  # fmt: skip
_CLONE, _CLONE3, _CLONE_THREAD = 56, 435, 0x00010000
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_ARCH_X86_64, _X32_CALLS = 0xC000003E, 0x40000000

_AUDITED = (
    "socket.connect", "socket.bind", "socket.send", "socket.getaddrinfo", "socket.gethostby", "subprocess.", "pty.",
    "os.exec", "os.fork", "os.kill", "os.posix_spawn", "os.spawn", "os.system", "ctypes.",
)  # fmt: skip


def main() -> None:
    """Reads the job, takes the rights away, says so, runs the program."""
    job = json.load(sys.stdin.buffer)
    status = int(sys.argv[1])
    layers = _confine(job["limits"], job["layers"])
    sys.stdin = io.StringIO(job["stdin"])
    os.close(0)
    os.open("/dev/null", os.O_RDONLY)  # takes the number that was just freed
    os.write(status, ",".join(layers).encode())
    os.close(status)
    _play(job["program"])


def _play(program: str) -> None:
    """Runs the source as `__main__`; a traceback shows its lines and none of this file's."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["main.py"]
    linecache.cache["main.py"] = (len(program), None, program.splitlines(keepends=True), "main.py")
    try:
        exec(compile(program, "main.py", "exec"), module.__dict__)
    except SystemExit:
        raise
    except BaseException as error:  # the program's, whatever it is: print it as the interpreter would
        trace = error.__traceback__
        traceback.print_exception(error.with_traceback(trace.tb_next if trace is not None else None))
        sys.exit(1)


def _confine(limits: Mapping[str, int], wanted: Iterable[str]) -> list[str]:
    """Applies every wanted layer that this kernel allows; their names."""
    layers = ["limits"]
    _checked(_LIBC.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    for name, apply in (("namespace", _unshare), ("landlock", _landlock), ("seccomp", _seccomp)):
        if name == "landlock":  # between the two: a new namespace counts processes afresh, seccomp forbids prlimit
            _limit(limits)
        if name in wanted:
            with suppress(OSError):
                apply(limits)
                layers.append(name)
    if "seccomp" not in layers:
        sys.addaudithook(_refuse)
        layers.append("audit")
    return layers


def _limit(limits: Mapping[str, int]) -> None:
    _LIBC.prctl(_SET_DEATH_SIGNAL, 9, 0, 0, 0)
    wanted = {
        resource.RLIMIT_CPU: limits["cpu_seconds"] + 1,
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NPROC: limits["processes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # A second between the two lets the signal say that it was the CPU time.
        soft = value - 1 if kind == resource.RLIMIT_CPU else value
        resource.setrlimit(kind, (soft, value))


def _unshare(limits: Mapping[str, int]) -> None:
    user, group, here = os.getuid(), os.getgid(), os.getcwd()
    _checked(_LIBC.unshare(_NEW_NAMESPACES))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    read_only = struct.pack("QQQQ", 1, 0, 0, 0)
    _call(_MOUNT_SETATTR, -100, b"/", 0x8000, read_only, len(read_only))  # 0x8000: and everything below
    size = f"size={limits['disk_bytes']},nr_inodes=4096,mode=700".encode()
    _checked(_LIBC.mount(b"tmpfs", here.encode(), b"tmpfs", 2 | 4 | 8, size))  # nosuid, nodev, noexec
    os.chdir(here)


def _landlock(limits: Mapping[str, int]) -> None:
    version = _call(_LANDLOCK_CREATE, 0, 0, 1)
    every = (1 << 13) - 1 | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    ruleset = _call(_LANDLOCK_CREATE, struct.pack("Q", every), 8, 0)
    for path, rights in _openable(every & ~_EXECUTE):
        with suppress(FileNotFoundError):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            _call(_LANDLOCK_ADD, ruleset, 1, struct.pack("<Qi", rights, place), 0)
            os.close(place)
    _call(_LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


def _openable(everything: int) -> Iterator[tuple[str, int]]:
    """Paths and the rights on what is at and below them."""
    read = _READ_FILE | _READ_DIRECTORY
    yield ".", everything
    yield "/dev/null", _READ_FILE | _WRITE_FILE
    for path in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"):
        yield path, read
    for path in ("/dev/urandom", "/dev/zero", "/etc/localtime"):
        yield path, _READ_FILE
    library = os.path.dirname(os.__file__)
    yield library, _READ_DIRECTORY  # imports list it
    for entry in os.scandir(library):
        # Packages installed beside the standard library may hold this project, and with it the hidden tests.
        if entry.name not in {"site-packages", "dist-packages"}:
            yield entry.path, read if entry.is_dir() else _READ_FILE
    for entry in os.scandir(os.path.dirname(library)):
        if ".so" in entry.name and entry.is_file():
            yield entry.path, _READ_FILE


def _seccomp(limits: Mapping[str, int]) -> None:
    if os.uname().machine != "x86_64" or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, "the system call numbers are those of x86-64")
    header, data = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _call(_CAPSET_X86_64, header, data)  # no capability is left, whoever started this
    filters = b"".join(struct.pack("HBBI", *line) for line in _filter(os.getpid()))
    pointer = ctypes.create_string_buffer(filters, len(filters))
    program = struct.pack("HxxxxxxP", len(filters) // 8, ctypes.addressof(pointer))
    _checked(_LIBC.prctl(_SET_SECCOMP, 2, program, 0, 0))


def _filter(own: int) -> Iterator[tuple[int, int, int, int]]:
    """BPF lines (operation, lines to skip if true, if false, value). Offsets: 0 call, 4 machine, 16 first argument."""
    deny = (_RETURN, 0, 0, _FAIL | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    first = (_LOAD, 0, 0, 16)
    yield from ((_LOAD, 0, 0, 4), (_IF_EQUAL, 1, 0, _ARCH_X86_64), (_RETURN, 0, 0, _KILL))
    yield from ((_LOAD, 0, 0, 0), (_IF_AT_LEAST, 0, 1, _X32_CALLS), deny)
    for number in _DENIED.values():
        yield from ((_IF_EQUAL, 0, 1, number), deny)
    # As if the kernel had no clone3: the C library then uses clone, whose flags can be read here.
    yield from ((_IF_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | errno.ENOSYS))
    yield from ((_IF_EQUAL, 0, 4, _CLONE), first, (_IF_ANY_BIT, 1, 0, _CLONE_THREAD), deny, allow)
    for number in _ONLY_ITSELF.values():
        yield from ((_IF_EQUAL, 0, 5, number), first, (_IF_EQUAL, 2, 0, 0), (_IF_EQUAL, 1, 0, own), deny, allow)
    yield allow


def _refuse(event: str, arguments: Any) -> None:
    if event.startswith(_AUDITED):
        raise PermissionError(f"{event} is not allowed here")


def _call(number: int, *arguments: int | bytes) -> int:
    return _checked(_LIBC.syscall(*(ctypes.c_long(x) if isinstance(x, int) else x for x in (number, *arguments))))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


if __name__ == "__main__":
    main()
