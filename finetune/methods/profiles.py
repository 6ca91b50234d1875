"""As released: `--model.profile` chooses what an authors' code does unlike its paper."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

Profiles = Mapping[str, Mapping[str, Any]]
"""Profile -> setting -> what it is where it was not given."""


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """Settings of a method whose authors published code; what a profile sets defaults to None.

    A subclass adds its `profiles` to those of its bases.
    """

    profile: Literal["fixed", "legacy"] = "fixed"
    """legacy: the released code's readings. fixed: its defects corrected. Sets what is null."""

    profiles: ClassVar[Profiles] = {}
    for_entities: ClassVar[Profiles] = {}
    """What differs in entity recognition."""
    former: ClassVar[Mapping[str, tuple[str, Mapping[Any, Any]]]] = {}
    """Name of a setting in files of older commits -> its name now, and old values -> new ones."""

    def settled(self, kind: str = "relation") -> Self:
        """With the profile's choice for every setting that was not given, for tasks of `kind`."""
        tables = ("profiles", "for_entities") if kind == "entities" else ("profiles",)
        choices: dict[str, Any] = {}
        for base in reversed(type(self).__mro__):
            for table in tables:
                choices |= vars(base).get(table, {}).get(self.profile, {})
        return replace(self, **{k: v for k, v in choices.items() if getattr(self, k) is None})


def in_present_names(config_class: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a file of an older commit holds, by the names and values of today."""
    former = getattr(config_class, "former", {})
    present = {}
    for name, value in settings.items():
        name, values = former.get(name, (name, {}))
        present[name] = values.get(value, value) if values else value
    return present
