"""The image benchmarks of domain adaptation and generalisation, from Office-31 to DomainNet and traffic signs.

``benchmarks.yaml`` says how their folders are named and how many images belong in each; ``dafw data check`` compares
a folder with it.
"""

import time
from collections.abc import Iterable
from typing import Any

from dafw.data.entries import Entries
from dafw.data.manifest import missing_files
from dafw.errors import UserError
from datamodules.folder import ImageFolderDomains
from datamodules.layouts import Benchmark, benchmarks, canonical, find_home, list_domain
from datamodules.listings import keep_listing, read_listing
from datamodules.splits import Protocol


class _BenchmarkFolders(ImageFolderDomains):
    """A benchmark with the folders that ``benchmarks.yaml`` describes.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        root: folder of the benchmark, in the layout of DomainBed's download script or of the authors' archive.
        protocol: ``domainbed`` (:func:`datamodules.splits.in_domainbed`) or ``shares``, given by ``split``.
        options: see :class:`datamodules.folder.ImageFolderDomains`.
    """

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        root: str,
        protocol: Protocol = "domainbed",
        **options: Any,
    ) -> None:
        super().__init__(source, target, root=root, protocol=protocol, **options)

    def _domains(self, listed: Entries | None) -> tuple[str, ...]:
        if listed is not None:
            return super()._domains(listed)
        facts = self._facts()
        self.root = find_home(facts, self.root)
        return tuple(facts.domains)

    def _list(self, name: str, listed: Entries | None) -> Entries:
        if listed is not None:
            return super()._list(name, listed)
        facts, begun = self._facts(), time.time()
        entries = read_listing(facts, self.root, name)
        if entries is None:
            entries = self._checked(facts, name)
            keep_listing(facts, self.root, name, entries, begun)
        return entries

    def _checked(self, facts: Benchmark, name: str) -> Entries:
        entries = list_domain(facts, self.root, name)
        check = f"dafw data check {facts.name} --root {self.root}"
        if not len(entries):
            raise UserError(f"{self.root} (data.root) holds no images of {name}: {check} says what is missing")
        strange = sorted({label for label in entries.labels.counts() if label} - set(facts.classes))
        if facts.classes and strange:
            lists = facts.domains[name].numbered
            why = f" ({lists[0]}, which says the classes, is not there)" if lists else ""
            raise UserError(
                f'{facts.name} has no class "{strange[0]}", which {name} in {self.root} has{why}: see {check}'
            )
        if facts.names_files(name):
            missing = missing_files(entries, self.root)
            if missing:
                raise UserError(
                    f"{len(missing)} of {name}'s images are not in {self.root}, {missing[0]} first: see {check}"
                )
        return entries

    def _facts(self) -> Benchmark:
        return next(benchmarks()[kind.__name__] for kind in type(self).__mro__ if kind.__name__ in benchmarks())

    def _keys(self, entries: Entries) -> Iterable[str]:
        if self.manifest is not None:
            return entries.paths
        with_class = not self._facts().annotations
        return (canonical(entry, with_class=with_class) for entry in entries)


class PACS(_BenchmarkFolders):
    """PACS: 9,991 images of 7 classes in 4 styles (Li et al., ICCV 2017).

    The images are in ``<domain>/<class>/``, in ``root`` itself or in ``PACS``, ``kfold`` or ``PACS/kfold`` below it.
    See https://arxiv.org/abs/1710.03077. The arguments are those of :class:`datamodules.folder.ImageFolderDomains`.
    """

    domain_names: tuple[str, ...] = ("art_painting", "cartoon", "photo", "sketch")


class VLCS(_BenchmarkFolders):
    """VLCS: 10,729 photographs of 5 classes from 4 older data sets (Fang et al., ICCV 2013).

    Two layouts are read. One is ``<domain>/<class>/``. The other has ``CALTECH``, ``LABELME``, ``PASCAL`` and ``SUN``
    with numbered classes in ``full`` or, if that is missing, in ``train``, ``crossval`` and ``test`` together. The
    arguments are those of :class:`datamodules.folder.ImageFolderDomains`.
    """

    domain_names: tuple[str, ...] = ("Caltech101", "LabelMe", "SUN09", "VOC2007")


class OfficeHome(_BenchmarkFolders):
    """Office-Home: 15,588 images of 65 classes in 4 styles (Venkateswara et al., CVPR 2017).

    The images are in ``<domain>/<class>/``, in ``root`` itself or in ``office_home`` or ``OfficeHomeDataset_10072016``
    below it. ``Real World`` may be spelt ``Real_World`` or ``RealWorld``. See https://arxiv.org/abs/1706.07522. The
    arguments are those of :class:`datamodules.folder.ImageFolderDomains`.
    """

    domain_names: tuple[str, ...] = ("Art", "Clipart", "Product", "Real World")


class TerraIncognita(_BenchmarkFolders):
    """TerraIncognita: camera traps, 10 classes at the 4 places that DomainBed chose (Beery et al., ECCV 2018).

    Two layouts are read: ``location_<number>/<class>/``, which DomainBed's script makes, and the original archive,
    which is the folder ``eccv_18_all_images_sm`` with annotations (``*.json``) next to it. An image of two categories
    is in both, as there, but in the same split. See https://arxiv.org/abs/1807.04975. The arguments are those of
    :class:`datamodules.folder.ImageFolderDomains`.
    """

    domain_names: tuple[str, ...] = ("location_38", "location_43", "location_46", "location_100")


class DomainNet(_BenchmarkFolders):
    """DomainNet, cleaned: 586,575 images of 345 classes in 6 styles (Peng et al., ICCV 2019).

    The images are in ``<domain>/<class>/``. If the lists ``<domain>_train.txt`` and ``<domain>_test.txt`` lie next to
    the domains' folders, only the images that they name are used, otherwise all. DomainBed deletes the duplicates
    instead. The division of the lists into training and test is not used. See https://arxiv.org/abs/1812.01754. The
    arguments are those of :class:`datamodules.folder.ImageFolderDomains`.
    """

    domain_names: tuple[str, ...] = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


class DomainNet126(_BenchmarkFolders):
    """DomainNet-126: 142,334 images of 126 classes in 4 styles, a part of DomainNet (Saito et al., ICCV 2019).

    The images are in ``<domain>/<class>/``. The lists ``<domain>_list.txt`` beside them name those that count, a line
    ``domain/class/file number`` each. See https://arxiv.org/abs/1904.06487. The arguments are those of
    :class:`datamodules.folder.ImageFolderDomains`.
    """

    domain_names: tuple[str, ...] = ("clipart", "painting", "real", "sketch")

    def _list(self, name: str, listed: Entries | None) -> Entries:
        if listed is None and not (self.root / f"{name}_list.txt").is_file():
            raise UserError(
                f"{self.root} (data.root) lacks {name}_list.txt, which says which images of DomainNet belong to the 126"
                f" classes: get {self._facts().get}"
            )
        return super()._list(name, listed)


class _OfficeFolders(_BenchmarkFolders):
    """A benchmark with the protocol of the Office papers.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        root: folder of the benchmark.
        protocol: ``office``: all images of both sides train, and those of the target are the test too. Or ``shares``,
            given by ``split``, or ``domainbed``.
        options: see :class:`datamodules.folder.ImageFolderDomains`.
    """

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        root: str,
        protocol: Protocol = "office",
        **options: Any,
    ) -> None:
        super().__init__(source, target, root=root, protocol=protocol, **options)


class Office31(_OfficeFolders):
    """Office-31: 4,110 images of 31 classes from a shop's pages and two cameras (Saenko et al., ECCV 2010).

    The images are in ``<domain>/images/<class>/`` or ``<domain>/<class>/``. The arguments are those of
    :class:`datamodules.folder.ImageFolderDomains`; ``protocol`` is ``office`` by default.
    """

    domain_names: tuple[str, ...] = ("amazon", "dslr", "webcam")


class OfficeCaltech(_OfficeFolders):
    """Office-Caltech: 2,533 images of 10 classes that Office-31 shares with Caltech-256 (Gong et al., CVPR 2012).

    The images are in ``<domain>/<class>/`` or ``<domain>/images/<class>/``. The arguments are those of
    :class:`datamodules.folder.ImageFolderDomains`; ``protocol`` is ``office`` by default.
    """

    domain_names: tuple[str, ...] = ("amazon", "caltech", "dslr", "webcam")


class ImageCLEF(_OfficeFolders):
    """ImageCLEF-DA: 2,400 images of 12 classes from Bing, Caltech-256, ImageNet and PASCAL VOC (2014).

    The images are in the folders ``b``, ``c``, ``i`` and ``p``, and a list of each domain, such as ``list/bList.txt``,
    says "path number" on each line. Without lists they are in ``<domain>/<class>/``. The arguments are those of
    :class:`datamodules.folder.ImageFolderDomains`; ``protocol`` is ``office`` by default.
    """

    domain_names: tuple[str, ...] = ("b", "c", "i", "p")


class VisDA2017(_OfficeFolders):
    """VisDA-2017: 280,157 images of 12 classes, rendered and photographed (Peng et al., 2017).

    The images of ``train`` and ``validation`` are in ``<domain>/<class>/``. Those of ``test`` are in
    ``test/trunk<number>/``, and ``test/image_list.txt`` says their classes. The arguments are those of
    :class:`datamodules.folder.ImageFolderDomains`; ``protocol`` is ``office`` by default.
    """

    domain_names: tuple[str, ...] = ("train", "validation", "test")
