"""Limits of a server, and the answer to a request beyond them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        file_bytes: of a body.
        text_bytes: of one text.
        inputs: of one request.
        top: samples of an answer, of each modality.
        batch: inputs of one forward pass.
        requests: that are worked on or wait; the next is refused.
        seconds: that a body may take to come, and an answer to be ready.
    """

    file_bytes: int = 16 << 20
    text_bytes: int = 16 << 10
    inputs: int = 64
    top: int = 100
    batch: int = 64
    requests: int = 64
    seconds: float = 30.0


class Refusal(Exception):
    """A request that is not answered: an HTTP status and a sentence for the client, without anything of this machine."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
