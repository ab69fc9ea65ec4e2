"""The kinds of systems: a library in process, this service, another server. Each starts from its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from benchmarks.arena.callers import Format
from benchmarks.arena.environments import python_of
from benchmarks.arena.in_process import Driver, LeftOutError
from benchmarks.arena.models import Export, Model, exported
from benchmarks.arena.served import OwnServer, PeerServer

Running = Driver | OwnServer | PeerServer


@dataclass(frozen=True)
class InProcess:
    """A library, called in a process of its own.

    environment: None for this project's. arguments: what the driver of this name gets. export: what the library
    reads instead of the weights. own_model: the library has its own model, so its vectors are different ones.
    forward: how forward passes must run; None: in any way.
    """

    name: str
    driver: str
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: str | None = None
    export: Export | None = None
    own_model: bool = False
    forward: str | None = None

    def start(self, model: Model, sample: Sequence[str], chosen: dict[str, Any]) -> Driver:
        """Start it. chosen: what it chose in an earlier round. Raises LeftOutError, NotInstalledError."""
        if self.own_model and model.name != "demo":
            raise LeftOutError("it has its own model, which is measured beside the demo model")
        python = python_of(self.environment)
        folder = exported(model, self.export) if self.export else model.folder
        arguments = {**self.arguments, **chosen}
        driver = Driver(python, self.driver, folder, arguments, sample=sample, own=self.environment is None)
        return _checked(driver, self.forward)

    def about(self) -> dict[str, Any]:
        """Return how it is called, for the results."""
        return {"how": "in process", "arguments": self.arguments}


@dataclass(frozen=True)
class Own:
    """This service, called through BertClient (how is None) or HTTP. forward: as in InProcess."""

    name: str
    flags: tuple[str, ...]
    how: Format | None = None
    environment: str | None = None
    own_model: bool = False
    forward: str | None = None

    def start(self, model: Model, sample: Sequence[str], chosen: dict[str, Any]) -> OwnServer:
        """Start it. Raises LeftOutError if this version refuses the flags."""
        server = OwnServer(["-cpu", "-model_dir", str(model.folder), *self.flags], self.how)
        return _checked(server, self.forward)

    def about(self) -> dict[str, Any]:
        """Return how it is called, for the results."""
        how = "BertClient" if self.how is None else f"HTTP, {self.how.path}"
        return {"how": how, "flags": list(self.flags)}


@dataclass(frozen=True)
class Peer:
    """Another server, called through HTTP."""

    name: str
    command: tuple[str, ...]
    how: Format
    environment: str
    export: Export | None = None
    env: dict[str, str] = field(default_factory=dict)
    own_model: bool = False

    def start(self, model: Model, sample: Sequence[str], chosen: dict[str, Any]) -> PeerServer:
        """Start it. Raises LeftOutError, NotInstalledError."""
        if self.own_model and model.name != "demo":
            raise LeftOutError("it has its own model, which is measured beside the demo model")
        program = python_of(self.environment).parent / self.command[0]
        # optimum finds the file only if it is beside config.json, as it is in the folder of the export alone.
        folder = exported(model, self.export) / self.export if self.export else model.folder
        return PeerServer([str(program), *self.command[1:]], folder, self.how, self.env)

    def about(self) -> dict[str, Any]:
        """Return how it is called, for the results."""
        return {"how": f"HTTP, {self.how.path}", "command": list(self.command)}


@dataclass(frozen=True)
class NotHere:
    """A system that cannot run here; reason: what was tried."""

    name: str
    reason: str
    environment: str | None = None
    own_model: bool = False

    def start(self, model: Model, sample: Sequence[str], chosen: dict[str, Any]) -> Running:
        """Raise LeftOutError."""
        raise LeftOutError(self.reason)

    def about(self) -> dict[str, Any]:
        """Return how it is called, for the results."""
        return {"how": "not measured"}


_Checked = TypeVar("_Checked", Driver, OwnServer)


def _checked(running: _Checked, forward: str | None) -> _Checked:
    """Return the running system. Stops it and raises LeftOutError if its forward passes run in another way."""
    found = running.ran.get("forward")
    if forward in {None, found}:
        return running
    running.__exit__()
    raise LeftOutError(f"its forward passes are {found}, not {forward}")


System = InProcess | Own | Peer | NotHere
