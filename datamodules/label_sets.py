"""Label sets: the classes that source and target share in closed, partial, open and universal tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dafw.data.domain import Domain
from dafw.errors import UserError, choose, warn
from dafw.names import one_spelling

Chosen = int | list[str | int]
ROLES = ("common", "source_private", "target_private")


@dataclass(frozen=True)
class LabelSets:
    """The classes that source and target share, and the classes that only one of them has.

    Numbers take classes in the order of the data's class names; for a folder this is alphabetical, as in the
    literature. The common classes come first, then the source's own. The target's own classes are the *last* ones.
    Classes in neither are left out. Lists name classes.

    Args:
        common: classes of both, at least one.
        source_private: classes of the source alone.
        target_private: classes of the target alone, ``unknown`` to a model.
    """

    common: Chosen
    source_private: Chosen = 0
    target_private: Chosen = 0

    def resolve(self, class_names: Sequence[str]) -> "ClassSets":
        """Turns the numbers and lists into class names.

        Args:
            class_names: all classes of the data.

        Raises:
            UserError: for more classes than the data has, an unknown class, or a class that is named twice.
        """
        given = {role: getattr(self, role) for role in ROLES}
        numbers = {role: chosen for role, chosen in given.items() if isinstance(chosen, int)}
        for role, chosen in given.items():
            if not isinstance(chosen, list | tuple) and numbers.get(role, -1) < 0:
                said = "null" if chosen is None else chosen
                raise UserError(f"data.label_sets.{role} must be 0 or more, or a list of classes, not {said}")
        named = {
            role: [one if (one := str(name)) in class_names else one_spelling(one) for name in chosen]
            for role, chosen in given.items()
            if not isinstance(chosen, int)
        }
        seen: dict[str, str] = {}
        for role, names in named.items():
            for name in names:
                choose(f"data.label_sets.{role}", name, class_names)
                if name in seen:
                    where = f"twice in data.label_sets.{role}" if seen[name] == role else _both(seen[name], role)
                    raise UserError(f'class "{name}" is {where}')
                seen[name] = role
        free = [name for name in class_names if name not in seen]
        if sum(numbers.values()) > len(free):
            asked = " + ".join(f"{number} {role.replace('_', '-')}" for role, number in numbers.items())
            left = f", of which {len(seen)} are named" if seen else ""
            raise UserError(
                f"data.label_sets asks for {asked} classes, and the data has {len(class_names)}{left}: "
                f"{', '.join(class_names[:10])}{', ...' if len(class_names) > 10 else ''}"
            )
        own = numbers.get("target_private", 0)
        last = free[len(free) - own :]
        chosen = {"target_private": last} | {role: set(names) for role, names in named.items()}
        start = 0
        for role in ("common", "source_private"):
            if role in numbers:
                chosen[role] = free[start : start + numbers[role]]
                start += numbers[role]
        sets = ClassSets(*(tuple(name for name in class_names if name in chosen[role]) for role in ROLES))
        if not sets.common:
            raise UserError("data.label_sets.common must have at least one class")
        return sets


def _both(one: str, other: str) -> str:
    return f"both in data.label_sets.{one} and in data.label_sets.{other}"


@dataclass(frozen=True)
class ClassSets:
    """The label sets of a data set as class names, each in the order of the data's classes.

    Attributes:
        common: names of the shared classes.
        source_private: names of the classes that only the source has.
        target_private: names of the classes that only the target has.
    """

    common: tuple[str, ...]
    source_private: tuple[str, ...]
    target_private: tuple[str, ...]

    @property
    def source(self) -> tuple[str, ...]:
        """Classes of the source, the common ones first. A model predicts these."""
        return self.common + self.source_private

    @property
    def target(self) -> tuple[str, ...]:
        """Classes of the target."""
        return self.common + self.target_private

    @property
    def kind(self) -> str:
        """``closed``, ``partial``, ``open`` or ``universal``."""
        if self.target_private:
            return "universal" if self.source_private else "open"
        return "partial" if self.source_private else "closed"

    @property
    def counts(self) -> dict[str, int]:
        """Number of classes in each set."""
        return {role: len(getattr(self, role)) for role in ROLES}


#: The ten classes that Office-31 shares with Caltech-256.
OFFICE_CALTECH: list[str | int] = [
    *("back_pack", "bike", "calculator", "headphones", "keyboard"),
    *("laptop_computer", "monitor", "mouse", "mug", "projector"),
]
#: The classes of VisDA that are known in OSBP's open task.
VISDA_VEHICLES: list[str | int] = ["bicycle", "bus", "car", "motorcycle", "train", "truck"]
#: Label sets of the literature: classes, or numbers of common, source-private and target-private classes, which are
#: taken in alphabetical order. In Office-31 the common classes are :data:`OFFICE_CALTECH`. Two open tasks have other
#: classes than the usual ones, hence names of their own: that of the Transfer-Learning-Library on Office-31, and that
#: of OSBP on VisDA. The sets of the digits are our own.
PRESETS: dict[str, LabelSets] = {
    "office31-partial": LabelSets(OFFICE_CALTECH, 21, 0),
    "office31-open": LabelSets(OFFICE_CALTECH, 0, 11),
    "office31-open-tllib": LabelSets(20, 0, 11),
    "office31-universal": LabelSets(OFFICE_CALTECH, 10, 11),
    "office-home-partial": LabelSets(25, 40, 0),
    "office-home-open": LabelSets(25, 0, 40),
    "office-home-universal": LabelSets(10, 5, 50),
    "visda-partial": LabelSets(6, 6, 0),
    "visda-open": LabelSets(6, 0, 6),
    "visda-open-osbp": LabelSets(VISDA_VEHICLES, 0, 6),
    "visda-universal": LabelSets(6, 3, 3),
    "domainnet-universal": LabelSets(150, 50, 145),
    "digits-partial": LabelSets(5, 5, 0),
    "digits-open": LabelSets(5, 0, 5),
    "digits-universal": LabelSets(4, 3, 3),
}


def find_label_sets(given: LabelSets | str) -> LabelSets | None:
    """The label sets of that name; ``None`` for ``closed``, which uses the classes as they are.

    Raises:
        UserError: for an unknown name.
    """
    if isinstance(given, LabelSets):
        return given
    return PRESETS.get(choose("data.label_sets", "null" if given is None else given, ("closed", *PRESETS)))


def compare_classes(
    present: Mapping[str, set[str] | None],
    source: Sequence[str],
    target: Sequence[str],
    sets: ClassSets,
    named: bool,
) -> None:
    """Compares the classes that the data has with those that it should have.

    Args:
        present: by domain the names of the classes of its samples; ``None`` if its labels do not say.
        source: names of the source domains.
        target: names of the target domains.
        sets: the classes of source and target.
        named: whether ``label_sets`` names them; otherwise both must have the same classes.

    Raises:
        UserError: naming a class that one side lacks although ``label_sets`` says it has it.
    """
    found = {name: names for name, names in present.items() if names is not None}
    if not all(name in found for name in source):  # labels of many parts, or none, do not say what is there
        return
    sources = set().union(*(found[name] for name in source))
    expected = set(sets.source) if named else sources
    _refuse_lacking(sorted(expected - sources), ", ".join(source), target, named)
    for name in [name for name in target if name in found]:
        _refuse_lacking(sorted((set(sets.target) if named else sources) - found[name]), name, source, named)
        if not named:
            _refuse_lacking(sorted(found[name] - sources), ", ".join(source), [name], named)


def warn_of_untrained(domains: Sequence[Domain], names: Sequence[str]) -> None:
    """Warns of classes that a model predicts and that no training sample has.

    Args:
        domains: what trains with labels.
        names: the classes that a model predicts, in their order.
    """
    present = [domain.classes for domain in domains]
    found = [classes for classes in present if classes is not None]
    if not found or len(found) < len(present):  # labels of many parts do not say
        return
    trained = {int(code) for classes in found for code in np.unique(classes)}
    if lacking := [f'"{name}"' for code, name in enumerate(names) if code not in trained]:
        more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
        where = ", ".join(domain.name for domain in domains)
        warn(f"no training sample of {where} has the class {', '.join(lacking[:8])}{more}: a model cannot learn it")


def _refuse_lacking(classes: list[str], where: str, others: Sequence[str], named: bool) -> None:
    if not classes:
        return
    if not named:
        raise UserError(
            f'class "{classes[0]}" is in {", ".join(others)} but not in {where}, although data.label_sets is '
            "closed: say there which classes are common, source_private and target_private"
        )
    raise UserError(f'{where} has no sample of class "{classes[0]}", which data.label_sets says it has')
