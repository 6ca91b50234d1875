"""The commands of README.md, as they stand there."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
_COMMENT = re.compile(r"(?:^|\s+)#.*")
_COMMAND = re.compile(r"(?:\b(?:python -m|deepspeed|bash|source|pip install)\s)[^;|\n]*")


@dataclass(frozen=True)
class Step:
    """One line of a shell block (continued lines are one), or one loop."""

    section: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands in it, without the loop around them."""
        return [match.strip() for match in _COMMAND.findall(self.text)]


def steps(text: str | None = None) -> list[Step]:
    """All steps of README.md (or of `text`), in order."""
    text = README.read_text(encoding="utf-8") if text is None else text
    section, everything = "", list[Step]()
    for heading, block in re.findall(r"^## ([^\n]*)$|^```bash\n(.*?)^```$", text, re.M | re.S):
        section = heading or section
        loop = list[str]()
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s+", " ", _COMMENT.sub("", line)).strip()
            if not line:
                continue
            loop.append(line)
            if loop[0].startswith("for ") and not re.search(r"\bdone$", line):
                continue
            everything.append(Step(section, "\n".join(loop)))
            loop = []
    return everything
