"""Datamodules: one for each benchmark family, and one for folders of images. Each is imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.amazon import AmazonReviews
    from datamodules.amazon_texts import AmazonTexts
    from datamodules.base import DomainDataModule
    from datamodules.benchmarks import (
        PACS,
        VLCS,
        DomainNet,
        DomainNet126,
        ImageCLEF,
        Office31,
        OfficeCaltech,
        OfficeHome,
        TerraIncognita,
        VisDA2017,
    )
    from datamodules.box_benchmarks import BoxBenchmarks
    from datamodules.cifar_c import CIFAR10C, CIFAR100C
    from datamodules.coco import CocoDomains
    from datamodules.corruptions import Corruptions
    from datamodules.digits import Digits
    from datamodules.digits_in_scene import DigitsInScene
    from datamodules.features import FeatureDomains
    from datamodules.folder import ImageFolderDomains
    from datamodules.imagenet_variants import ImageNetVariants
    from datamodules.masks import MaskFolders
    from datamodules.mnist_variants import ColoredMNIST, RotatedMNIST
    from datamodules.scenes import DrivingScenes
    from datamodules.shapes import ShapesOnPhotos
    from datamodules.signs import Signs
    from datamodules.text import TextDomains
    from datamodules.unlabelled import UnlabelledImages
    from datamodules.voc import VocDomains
    from datamodules.wheat import GlobalWheat

_HOMES = {
    "AmazonReviews": "amazon",
    "AmazonTexts": "amazon_texts",
    "BoxBenchmarks": "box_benchmarks",
    "CIFAR100C": "cifar_c",
    "CIFAR10C": "cifar_c",
    "CocoDomains": "coco",
    "ColoredMNIST": "mnist_variants",
    "Corruptions": "corruptions",
    "Digits": "digits",
    "DigitsInScene": "digits_in_scene",
    "DomainDataModule": "base",
    "DomainNet": "benchmarks",
    "DomainNet126": "benchmarks",
    "DrivingScenes": "scenes",
    "FeatureDomains": "features",
    "GlobalWheat": "wheat",
    "ImageCLEF": "benchmarks",
    "ImageFolderDomains": "folder",
    "ImageNetVariants": "imagenet_variants",
    "MaskFolders": "masks",
    "Office31": "benchmarks",
    "OfficeCaltech": "benchmarks",
    "OfficeHome": "benchmarks",
    "PACS": "benchmarks",
    "RotatedMNIST": "mnist_variants",
    "ShapesOnPhotos": "shapes",
    "Signs": "signs",
    "TerraIncognita": "benchmarks",
    "TextDomains": "text",
    "UnlabelledImages": "unlabelled",
    "VLCS": "benchmarks",
    "VisDA2017": "benchmarks",
    "VocDomains": "voc",
}

__all__ = [
    "CIFAR10C",
    "CIFAR100C",
    "PACS",
    "VLCS",
    "AmazonReviews",
    "AmazonTexts",
    "BoxBenchmarks",
    "CocoDomains",
    "ColoredMNIST",
    "Corruptions",
    "Digits",
    "DigitsInScene",
    "DomainDataModule",
    "DomainNet",
    "DomainNet126",
    "DrivingScenes",
    "FeatureDomains",
    "GlobalWheat",
    "ImageCLEF",
    "ImageFolderDomains",
    "ImageNetVariants",
    "MaskFolders",
    "Office31",
    "OfficeCaltech",
    "OfficeHome",
    "RotatedMNIST",
    "ShapesOnPhotos",
    "Signs",
    "TerraIncognita",
    "TextDomains",
    "UnlabelledImages",
    "VisDA2017",
    "VocDomains",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"datamodules.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'datamodules' has no attribute {name!r}")
