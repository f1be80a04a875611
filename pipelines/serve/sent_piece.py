"""What of a streamed piece its client has: if another replica makes the piece again, only what is missing is sent."""

from __future__ import annotations

from pipelines.serve.clips import MadeClip
from pipelines.serve.refusal import refuse


class SentPiece:
    """Takes the parts of one replica after another, and gives those that were not sent.

    Attributes:
        head: what the piece is, with the beginning of its WAV; None before it is known.
    """

    def __init__(self) -> None:
        self.head: MadeClip | None = None
        self._sent = self._position = 0  # bytes after the head: sent, and made by the replica at work

    def start_again(self) -> None:
        """Expect the parts of a replica from its first one on."""
        self._position = 0

    def take(self, part: MadeClip | bytes) -> MadeClip | bytes:
        """Return what of the next part is to be sent: empty if nothing is.

        Raises:
            RefusedError: it is of another piece, such as that of a new champion or of another device.
        """
        if isinstance(part, MadeClip):
            if self.head is None:
                self.head = part
                return part
            if (self.head.settings, self.head.wav) != (part.settings, part.wav):
                raise refuse(503, "a replica died, and those left make another piece", "try again", value=part.model)
            return b""
        begin, self._position = self._position, self._position + len(part)
        missing = part[max(0, self._sent - begin) :]
        self._sent = max(self._sent, self._position)
        return missing
