"""Starting processes, pinned, and stopping every one of them again, also after Ctrl-C."""

import os
import signal
import socket
import subprocess
import time

STOP_SECONDS = 8


class Processes:
    """All that this run has started. Each is the leader of a session of its own, so that its helpers stop with it."""

    def __init__(self):
        self.started = []

    def start(self, command, log, cpus=None, user=None, stop_signal=signal.SIGTERM):
        def pin():
            if cpus:
                os.sched_setaffinity(0, cpus)

        with open(log, "ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, preexec_fn=pin,
                **identity(user))
        process.stop_signal = stop_signal
        self.started.append(process)
        return process

    def stop(self, process):
        if process in self.started:
            self.started.remove(process)
        if process.poll() is None:
            process.send_signal(process.stop_signal)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        # Helpers that outlived their parent, and the parent if it would not stop.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()

    def stop_all(self):
        for process in reversed(list(self.started)):
            self.stop(process)


def identity(user):
    return {"user": user, "group": user, "extra_groups": []} if user else {}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port, process, seconds=15):
    """Whether somebody listens before the time is up and before the process ends."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.05)
    return False


def cpus_of_this_machine():
    return sorted(os.sched_getaffinity(0))
