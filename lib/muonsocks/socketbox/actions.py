"""What may be done with a connection, and in which order it is tried."""

from __future__ import annotations


class _Action:
    """`text` is how it is written in the file it comes from."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class Fail(_Action):
    """Close the connection."""

    __slots__ = ()


class ToPath(_Action):
    """Send it to the receiver at a unix socket; with @ in front it is an abstract name."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        super().__init__(f"jump-unix:{path}")
        self.path = path

    def __reduce__(self) -> tuple[type[ToPath], tuple[str]]:
        return ToPath, (self.path,)


class ToDescriptor(_Action):
    """Send it over a unix socket that was inherited, by its number."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        super().__init__(f"jump-fd:{number}")
        self.number = number


class ToGroup(_Action):
    """Send it to who has registered for a group: the slot of that number."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        super().__init__(f"o:{number}")
        self.number = number


class Jump(_Action):
    """Look further in the set of that name."""

    __slots__ = ("target",)

    def __init__(self, target: str, text: str) -> None:
        super().__init__(text)
        self.target = target


Action = Fail | ToPath | ToDescriptor | ToGroup | Jump
Final = Fail | ToPath | ToDescriptor | ToGroup
FAIL = Fail("fail")


class Verdict:
    """What an entry or a default says: actions, of which each is for when those before it cannot.

    There is at least one. `origin` is where that is written, as FILE:LINE.
    """

    __slots__ = ("actions", "origin")

    def __init__(self, actions: tuple[Action, ...], origin: str) -> None:
        self.actions = actions
        self.origin = origin

    def __reduce__(self) -> tuple[type[Verdict], tuple[tuple[Action, ...], str]]:
        """Be small, as each worker gets a copy."""
        return Verdict, (self.actions, self.origin)

    @property
    def text(self) -> str:
        """The verdict as it is written in a file."""
        return " else ".join(action.text for action in self.actions)
