"""Who takes part: roles, strikes and quarantine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from geminid.runtime.messages import Hello
from geminid.runtime.replicas import Place


class Role(StrEnum):
    """What a slice is to the run."""

    ACTIVE = "active"  # holds the committed state and computes
    STANDBY = "standby"
    MISSING = "missing"  # given up; may come back
    QUARANTINED = "quarantined"  # computes nothing; its copy, checked by digest, may still be fetched


@dataclass
class Member:
    """One slice."""

    device: str
    computes: bool
    role: Role
    place: Place


class Members:
    """All slices known to the controller, in the order in which they came."""

    def __init__(self, max_strikes: int) -> None:
        self.by_name: dict[str, Member] = {}
        self.quarantined: set[str] = set()  # devices
        self._strikes: Counter[str] = Counter()  # by device
        self._max_strikes = max_strikes

    @property
    def active(self) -> list[str]:
        return [name for name, member in self.by_name.items() if member.role is Role.ACTIVE]

    @property
    def standbys(self) -> list[str]:
        """Those who could compute."""
        return [name for name, m in self.by_name.items() if m.role is Role.STANDBY and m.computes]

    @property
    def keepers(self) -> list[str]:
        """Those who only hold copies."""
        return [name for name, m in self.by_name.items() if m.role is Role.STANDBY and not m.computes]

    def welcome(self, hello: Hello) -> bool:
        """True where this makes a new standby; a second greeting changes nothing."""
        known = self.by_name.get(hello.slice)
        if known is not None and known.role is not Role.MISSING:
            return False
        role = Role.QUARANTINED if hello.device in self.quarantined else Role.STANDBY
        self.by_name[hello.slice] = Member(hello.device, hello.computes, role, hello.place or (hello.device,))
        return role is Role.STANDBY

    def appoint(self, name: str, role: Role) -> None:
        """Change a role; quarantine stays."""
        if self.by_name[name].role is not Role.QUARANTINED:
            self.by_name[name].role = role

    def strike(self, name: str) -> bool:
        """Note a transient fault of the device behind a slice; True where it was one too many."""
        device = self.by_name[name].device
        self._strikes[device] += 1
        if self._strikes[device] >= self._max_strikes:
            self.quarantine(name)
        return device in self.quarantined

    def quarantine(self, name: str) -> None:
        """Trust nothing that this slice's device computes, now and after a restart."""
        device = self.by_name[name].device
        self.quarantined.add(device)
        for member in self.by_name.values():
            if member.device == device:
                member.role = Role.QUARANTINED

    def repaired(self, device: str) -> bool:
        """Lift a quarantine; True where that makes a new standby."""
        self.quarantined.discard(device)
        del self._strikes[device]
        back = [m for m in self.by_name.values() if m.device == device and m.role is Role.QUARANTINED]
        for member in back:
            member.role = Role.STANDBY
        return bool(back)
