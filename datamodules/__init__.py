"""Datamodules: one for each benchmark family, and one for folders of images. Each is imported when it is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.base import DomainDataModule
    from datamodules.digits import Digits
    from datamodules.folder import ImageFolderDomains

_HOMES = {"DomainDataModule": "base", "Digits": "digits", "ImageFolderDomains": "folder"}

__all__ = ["Digits", "DomainDataModule", "ImageFolderDomains"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"datamodules.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'datamodules' has no attribute {name!r}")
