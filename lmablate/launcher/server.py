"""Forking on request: what the warm process (forkserver.py) does once its imports are done.

JSON lines over a socket. In: ``{"start": id, "directories": [path], "log": path, "trust": [package],
"environment": {name: value}}``; several directories are runs of one graph, for a gang; and ``{"import": [module],
"environment": {name: value}}`` before the first of them. Out: ``{"ready": threads}`` after imports,
``{"started": id, "pid": pid}`` when the child leads a session of its own, ``{"refused": id, "error": words}`` when it could
not be forked, and ``{"ended": id, "code": code}``, negative for a signal. When the socket closes, this process ends, and
the kernel ends its children as it does when it is killed.

A request with ``"graph": key`` goes to a template: a child that first compiles that graph (in the ``directories`` of the
first request) and then serves the requests of its key in this same way, until one says ``"last": true``. Such a request
is answered twice: at once with the template's process id and ``"waiting": true``, and again when the run has started. If
a template dies, the runs that wait for it are forked without one, unless a ``{"stop": true}`` came before, and of those
that train, which the kernel stops, this process says ``{"orphaned": id}``.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
from contextlib import suppress
from typing import Any

from lmablate.launcher.worker import die_with_parent

Request = dict[str, Any]


class Template:
    """A child that has compiled one graph, and forks the runs of it; a Server in its turn."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.channel, self.pid = channel, pid
        self.lines = Lines()
        self.waiting: dict[int, Request] = {}  # not started yet
        self.running: set[int] = set()


class Lines:
    """Messages from a stream of bytes."""

    def __init__(self) -> None:
        self.pending = b""

    def take(self, received: bytes) -> list[dict[str, Any]]:
        *lines, self.pending = (self.pending + received).split(b"\n")
        return [json.loads(line) for line in lines]


class Server:
    """Forks children on request and reports what becomes of them."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.children: dict[int, tuple[int, int]] = {}  # by process file descriptor: request id, process id
        self.templates: dict[str, Template] = {}  # by graph
        self.spoilt: set[str] = set()  # graphs whose template died
        self.last = False  # no more requests will come
        self.stopping = False

    def serve(self) -> Request | None:
        """Work until the other side hangs up or needs no more: None. In a child it returns with what is to be done."""
        lines = Lines()
        while not (self.last and not self.children):
            channels = {template.channel.fileno(): graph for graph, template in self.templates.items()}
            poll = select.poll()  # made anew each time: an epoll set would be shared with children
            for fd in (self.channel.fileno(), *self.children, *channels):
                poll.register(fd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll()]
            if self.channel.fileno() in ready:  # first, since a word to stop comes before what it does to templates
                received = self.channel.recv(1 << 16)
                if not received:
                    return None
                for request in lines.take(received):
                    if mine := self._take(request):
                        return mine
            for fd in ready:
                if fd in self.children:
                    self._reap(fd)
                elif fd in channels and (mine := self._relay(channels[fd])):
                    return mine
        return None

    def send(self, message: dict[str, Any]) -> None:
        send(self.channel, message)

    def _take(self, request: Request) -> Request | None:
        """Fork for a request, or hand it to the template of its graph. In a child: what it is to do."""
        if "stop" in request:
            self.stopping = True
            return None
        if "import" in request:
            os.environ.update(request["environment"])
            for name in request["import"]:
                importlib.import_module(name)
            self.send({"ready": len(os.listdir("/proc/self/task"))})
            return None
        graph = request.pop("graph", None)
        if graph is None or graph in self.spoilt:
            self.last = graph is None and request.get("last", False)
            return self._fork(request)
        if graph not in self.templates:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    pid = self._split(request["log"])
                except OSError:
                    ours.close()
                    self.spoilt.add(graph)
                    return self._fork(request)
                if pid == 0:
                    ours.close()
                    return {**request, "template": socket.socket(fileno=theirs.detach())}
            self.templates[graph] = Template(ours, pid)
        template = self.templates[graph]
        template.waiting[request["start"]] = request
        self.send({"started": request["start"], "pid": template.pid, "waiting": True})
        with suppress(OSError):  # it has died, as _relay will find
            send(template.channel, request)
        return None

    def _relay(self, graph: str) -> Request | None:
        """Pass on what a template says. If it has died: start those that wait, and tell of those that have lost it."""
        template = self.templates[graph]
        try:
            received = template.channel.recv(1 << 16)
        except OSError:
            received = b""
        for message in template.lines.take(received):
            if "started" in message:
                template.waiting.pop(message["started"])
                template.running.add(message["started"])
            elif "ended" in message:
                template.running.discard(message["ended"])
            elif mine := self._fork(template.waiting.pop(message["refused"])):
                return mine
            else:
                continue
            self.send(message)
        if received:
            return None
        template.channel.close()
        del self.templates[graph]
        os.waitpid(template.pid, 0)
        for number in template.running:
            self.send({"orphaned": number})
        for number, request in template.waiting.items():
            self.spoilt.add(graph)
            if self.stopping:
                self.send({"ended": number, "code": -signal.SIGTERM})
            elif mine := self._fork(request):
                return mine
        return None

    def _reap(self, fd: int) -> None:
        request, pid = self.children.pop(fd)
        os.close(fd)
        _, status = os.waitpid(pid, 0)
        self.send({"ended": request, "code": os.waitstatus_to_exitcode(status)})

    def _fork(self, request: Request) -> Request | None:
        """In the child: the request. None in the parent, which goes on at once."""
        try:
            pid = self._split(request["log"])
        except OSError as error:
            self.send({"refused": request["start"], "error": str(error)})
            return None
        if pid == 0:
            return request
        self.children[os.pidfd_open(pid)] = (request["start"], pid)
        self.send({"started": request["start"], "pid": pid})
        return None

    def _split(self, log: str) -> int:
        """Fork. 0 in the child; its process id in the parent, once the child can take signals for all below it."""
        heard, said = os.pipe()
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            os.close(heard)
            os.close(said)
            raise
        if pid == 0:
            self._become_child(log, server)
            os.close(heard)
            os.close(said)  # what the parent waits for
            return 0
        os.close(said)
        os.read(heard, 1)
        os.close(heard)
        return pid

    def _become_child(self, log: str, server: int) -> None:
        """Leave everything of the server's behind, as a process of its own would start."""
        os.setsid()
        self.channel.close()
        for template in self.templates.values():
            template.channel.close()
        for fd in self.children:
            os.close(fd)
        try:
            file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError:  # a full disk: the run says so in its status, or not at all
            file = os.open(os.devnull, os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        die_with_parent(server)


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")
