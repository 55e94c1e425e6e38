"""Benchmarks with boxes: street scenes, PASCAL VOC, Clipart, Watercolor and Penn-Fudan."""

import re
from typing import Any

from dafw.errors import UserError, choose
from datamodules.box_folders import BoxFolders
from datamodules.box_layouts import WHEAT, common_classes, layouts, list_boxes
from datamodules.box_listing import Listed


class BoxBenchmarks(BoxFolders):
    """Boxes of several datasets, each in the layout of its authors.

    The folders of the datasets lie side by side in ``root``, see ``box_layouts.yaml``; ``dafw data list`` says where
    they come from, and ``dafw data check`` what is missing. Where there is an official test or validation set with
    labels, the test is that set. Boxes of Cityscapes lie around the visible part of each instance.

    Inoue et al., CVPR 2018, https://arxiv.org/abs/1803.11365, have Clipart and Watercolor; the others' papers are in
    that list.

    Domains: ``cityscapes``, ``foggy_cityscapes_0.02`` (the densest fog), ``foggy_cityscapes_all`` (three densities, so
    that each place comes three times, always in one split), ``sim10k``, ``kitti``, ``bdd100k``, ``bdd100k_daytime``,
    ``voc2007``, ``voc2012``, ``voc`` (both training sets, and the test of 2007), ``clipart``, ``watercolor``,
    ``penn_fudan``, and its two places ``penn`` and ``fudan``.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        root: folder that holds the folders of the datasets.
        classes: names of the classes; ``None``: those that all of these datasets have. Papers on Sim10k and KITTI use
            ``car`` alone.
        options: see :class:`datamodules.box_folders.BoxFolders`.

    Raises:
        UserError: if a folder or an annotation is missing, or an argument is wrong.
    """

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        root: str,
        classes: list[str] | None = None,
        **options: Any,
    ) -> None:
        named = [name for side in (source, target) for name in ([side] if isinstance(side, str) else side)]
        for name in named:
            choose("domain", name, domains())
        every = {one for name in named for one in layouts()[name]["classes"]}
        for one in classes or ():
            choose("class of data.classes", one, sorted(every))
        super().__init__(source, target, root=root, classes=classes or common_classes(named), **options)

    def _domains(self) -> tuple[str, ...]:
        if not self.root.is_dir():
            raise UserError(f"the folder {self.root} (data.root) does not exist")
        return domains()

    def _key(self, path: str) -> str:
        return re.sub(r"_beta_[0-9.]+(?=\.\w+$)", "", path)

    def _list(self, name: str) -> Listed:
        return list_boxes(self.root, name)


def domains() -> tuple[str, ...]:
    """The names of the domains."""
    return tuple(name for name, facts in layouts().items() if facts["kind"] != WHEAT)
