"""Refuse every connection that leaves this machine, in each Python started with this folder on
PYTHONPATH: a smoke run that needs the network fails, wherever it is run. The reader of notebooks
also does without a check of addresses that takes a second to import and is never asked for."""

import socket
import sys

sys.modules["rfc3987_syntax"] = None  # jsonschema's, and it can do without

_connect, _resolve = socket.socket.connect, socket.getaddrinfo


def _check(host):
    if str(host) not in ("localhost", "127.0.0.1", "::1", "None", ""):
        raise OSError(f"a smoke run must not need the network, and asked for {host}")


def _guarded_connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _check(address[0])
    return _connect(self, address)


def _guarded_resolve(host, *args, **kwargs):
    _check(host)
    return _resolve(host, *args, **kwargs)


socket.socket.connect = _guarded_connect
socket.getaddrinfo = _guarded_resolve
