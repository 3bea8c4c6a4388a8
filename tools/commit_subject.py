"""Refuse a commit message whose subject is too long or does not say what kind of change it is.

python tools/commit_subject.py .git/COMMIT_EDITMSG           as a commit-msg hook does (pre-commit)
git log --format=%s main..HEAD | python tools/commit_subject.py      each line is a subject
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

LIMIT = 72
KINDS = ("feat", "fix", "perf", "refactor", "test", "docs", "build", "ci")

# What git writes by itself: merges and reverts, and commits that a rebase will melt into others.
_GENERATED = re.compile(r"(Merge |Revert \"|(fixup|squash|amend)! )")


def subject_of(message: str) -> str:
    """Return the first line of a message that is neither empty nor a comment of git's, "" if there is none."""
    lines = (line.strip() for line in message.splitlines())
    return next((line for line in lines if line and not line.startswith("#")), "")


def reason_against(subject: str) -> str | None:
    """Return what is wrong with a subject, None if nothing is."""
    if _GENERATED.match(subject):
        return None
    if not re.match(rf"({'|'.join(KINDS)}): \S", subject):
        return f"it must begin with one of {', '.join(KINDS)}, a colon and a space"
    if len(subject) > LIMIT:
        return f"it has {len(subject)} characters, the limit is {LIMIT}"
    return None


def main(arguments: list[str]) -> int:
    """Check the message in a file, or each line of standard input; return the exit status."""
    if arguments:
        subjects = [subject_of(Path(path).read_text(encoding="utf-8")) for path in arguments]
    else:
        subjects = sys.stdin.read().splitlines()
    refused = [(subject, reason) for subject in subjects if (reason := reason_against(subject)) is not None]
    for subject, reason in refused:
        print(f'commit subject "{subject}": {reason}', file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
