"""Logins by SCRAM beside busy clients: by how much they raise the busy clients' p99.

Two poolers run on the same CPU, with the same configuration. The busy clients are on one of them; the logins go to the
other one (the baseline) or to the same one, so that only what a login makes others wait for is different.
"""

import base64
import glob
import hashlib
import hmac
import os
import re
import secrets
import socket
import statistics
import struct
import subprocess
import threading
import time

from .processes import cpus_of_this_machine, free_port, wait_for_port
from .runs import say

LOGINS_PER_MINUTE = 5000
CLIENTS = 64
ROUNDS = 5
SECONDS = 12
RISE_MAX = 1.2
THREADS = 4
PASSWORD = b"a password of nobody's"
ITERATIONS = 4096

CONFIGURATION = """\
listening_address: 127.0.0.1:{port}
servers: ["127.0.0.1:{server}"]
log_output: {{file: {log}}}
log_level: Warn
control: {{socket: {folder}/control.sock}}
pool: {{size: 16}}
auth:
  method: scram-sha-256
  users: {{login: "{verifier}"}}
  server_user: bench
users: {{bench: {{auth: {{method: trust}}}}}}
"""


class Secret:
    """What a client keeps of its password, and what a server keeps."""

    def __init__(self):
        self.salt = secrets.token_bytes(16)
        # The rounds are done once, or the generator would be the load.
        salted = hashlib.pbkdf2_hmac("sha256", PASSWORD, self.salt, ITERATIONS)
        self.client_key = keyed(salted, b"Client Key")
        self.stored_key = hashlib.sha256(self.client_key).digest()
        self.server_key = keyed(salted, b"Server Key")

    def verifier(self):
        salt, stored, server = (base64.b64encode(part).decode() for part in (self.salt, self.stored_key, self.server_key))
        return f"SCRAM-SHA-256${ITERATIONS}:{salt}${stored}:{server}"


def keyed(key, text):
    return hmac.digest(key, text, "sha256")


def message(tag, body):
    return tag + struct.pack("!i", len(body) + 4) + body


class Connection:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""

    def next(self):
        """The next message: its tag and body."""
        while len(self.received) < 5 or len(self.received) < 1 + struct.unpack("!i", self.received[1:5])[0]:
            some = self.socket.recv(8192)
            if not some:
                raise OSError("the connection was closed")
            self.received += some
        size = 1 + struct.unpack("!i", self.received[1:5])[0]
        tag, body, self.received = self.received[:1], self.received[5:size], self.received[size:]
        if tag == b"E":
            raise OSError(body.decode(errors="replace"))
        return tag, body

    def log_in(self, secret):
        parameters = b"user\0login\0database\0bench\0\0"
        self.socket.sendall(struct.pack("!ii", len(parameters) + 8, 3 << 16) + parameters)
        self.next()
        bare = b"n=,r=" + base64.b64encode(secrets.token_bytes(18))
        first = b"n,," + bare
        self.socket.sendall(message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(first)) + first))
        _, body = self.next()
        server_first = body[4:]
        nonce = re.match(rb"r=([^,]+)", server_first)[1]
        without_proof = b"c=biws,r=" + nonce
        signature = keyed(secret.stored_key, b",".join((bare, server_first, without_proof)))
        proof = bytes(one ^ other for one, other in zip(secret.client_key, signature))
        self.socket.sendall(message(b"p", without_proof + b",p=" + base64.b64encode(proof)))
        while self.next()[0] != b"Z":
            pass

    def close(self):
        self.socket.sendall(message(b"X", b""))
        self.socket.close()


class Generator:
    """So many logins a minute, evenly, until it is stopped."""

    def __init__(self, port, secret):
        self.port, self.secret = port, secret
        self.begun = time.monotonic()
        self.turn, self.done, self.failed, self.stopped = 0, 0, [], False
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run) for _ in range(THREADS)]
        for thread in self.threads:
            thread.start()

    def run(self):
        while not self.stopped:
            with self.lock:
                due = self.begun + self.turn * 60 / LOGINS_PER_MINUTE
                self.turn += 1
            time.sleep(max(0, due - time.monotonic()))
            try:
                connection = Connection(self.port)
                connection.log_in(self.secret)
                connection.close()
                with self.lock:
                    self.done += 1
            except OSError as error:
                self.failed.append(str(error))

    def stop(self):
        """Logins per minute that went well."""
        self.stopped = True
        for thread in self.threads:
            thread.join()
        if self.failed:
            raise SystemExit(f"{len(self.failed)} logins failed, the first: {self.failed[0]}")
        return self.done * 60 / (time.monotonic() - self.begun)


def p99_of_busy_clients(postgres, port, folder):
    """Milliseconds, over all transactions of one run of pgbench."""
    prefix = os.path.join(folder, "transactions")
    command = [os.path.join(postgres.programs, "pgbench"), "-n", "-S", "-M", "prepared", "-c", str(CLIENTS), "-j", "1",
               "-T", str(SECONDS), "-h", "127.0.0.1", "-p", str(port), "-U", "bench", "-l", "--log-prefix", prefix, "bench"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pgbench failed: {done.stderr}")
    took = []
    for path in glob.glob(prefix + ".*"):
        with open(path) as lines:
            took.extend(int(line.split()[2]) for line in lines)
        os.remove(path)
    took.sort()
    return took[len(took) * 99 // 100] / 1000, len(took) / SECONDS


def start_pooler(processes, programs, folder, name, server, secret):
    own = os.path.join(folder, name)
    os.mkdir(own)
    port = free_port()
    path = os.path.join(own, "qcp.yaml")
    with open(path, "w") as file:
        file.write(CONFIGURATION.format(port=port, server=server, log=os.path.join(own, "log"), folder=own,
                                        verifier=secret.verifier()))
    os.chmod(path, 0o600)
    command = [os.path.join(programs, "qcp"), "--cores", "1", "--config", path]
    process = processes.start(command, os.path.join(own, "output"), cpus=cpus_of_this_machine()[-1:])
    if not wait_for_port(port, process):
        raise SystemExit(f"QCP did not start:\n{open(os.path.join(own, 'output')).read()}")
    return port


def measure(processes, postgres, programs, folder):
    """Prints what was measured. True: the bar holds."""
    secret = Secret()
    busy, other = (start_pooler(processes, programs, folder, name, postgres.port, secret) for name in ("busy", "other"))
    runs = {"elsewhere": [], "beside": []}
    for round_number in range(ROUNDS):
        for name, port in (("elsewhere", other), ("beside", busy))[:: 1 if round_number % 2 == 0 else -1]:
            generator = Generator(port, secret)
            p99, rate = p99_of_busy_clients(postgres, busy, folder)
            logins = generator.stop()
            if logins < 0.95 * LOGINS_PER_MINUTE:
                raise SystemExit(f"only {logins:.0f} logins a minute: the generator or QCP did not keep up")
            runs[name].append(p99)
            say(f"logins {name}: p99 {p99:.3f} ms at {rate:.0f} transactions a second, {logins:.0f} logins a minute")
    baseline, beside = (statistics.median(runs[name]) for name in ("elsewhere", "beside"))
    rise = beside / baseline
    for name, median in (("elsewhere", baseline), ("beside", beside)):
        print(f"logins {name:9}  p99 {median:.3f} ms ({min(runs[name]):.3f} to {max(runs[name]):.3f})")
    verdict = "passed" if rise <= RISE_MAX else "FAILED"
    print(f"{verdict}: {LOGINS_PER_MINUTE} logins a minute raise the p99 of {CLIENTS} busy clients by {100 * (rise - 1):.1f}% "
          f"(at most {100 * (RISE_MAX - 1):.0f}%)")
    return rise <= RISE_MAX
