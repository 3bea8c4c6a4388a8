"""How much may be in flight at once on the stages of a pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from .record import Record


@dataclass(frozen=True, slots=True)
class Limits(Record):
    """What may be in flight at once.

    At most `most_prompts` groups have a prompt of which nothing has returned (None: any number of them).
    Groups that share forwards are up to `most_sequences`, others `most_groups`, where all count. Further steps of the
    former are sent in up to `most_packs` messages, each of up to `pack_tokens` tokens. Keys and values of all groups
    together are those of at most `cache_tokens` tokens when they end, unless one group alone has more (None: any number
    of them). Those of groups that have ended are kept for others that begin alike, up to `prefix_tokens` tokens, as
    far as that leaves room.
    """

    most_groups: int
    most_sequences: int = 1
    most_packs: int = 1
    pack_tokens: int = 1
    cache_tokens: int | None = None
    prefix_tokens: int = 0
    most_prompts: int | None = None
