"""Holds one thread of a process, as a lock or a disk that hangs would; all others run on. Until the process ends.

    stall.py PID NAME
"""

import ctypes
import os
import pathlib
import sys

SEIZE, INTERRUPT = 0x4206, 0x4207
ALL_CHILDREN = 0x40000000


def ptrace(request, thread):
    call = ctypes.CDLL(None, use_errno=True).ptrace
    call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if call(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace of {thread}")


def main():
    process, name = sys.argv[1:]
    (thread,) = [
        int(task.name)
        for task in pathlib.Path(f"/proc/{process}/task").iterdir()
        if (task / "comm").read_text(encoding="utf-8").strip() == name
    ]
    ptrace(SEIZE, thread)
    ptrace(INTERRUPT, thread)
    print("held", flush=True)
    while True:
        _, status = os.waitpid(thread, ALL_CHILDREN)
        if os.WIFSIGNALED(status) or os.WIFEXITED(status):
            return


if __name__ == "__main__":
    main()
