"""An explicit list of the images of a target, such as those 5,000 of each corruption that a benchmark scores."""

from collections import Counter
from hashlib import blake2b
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from dafw.data.domain import Domain
from dafw.errors import UserError
from dafw.files import reading, user_path


class ImageList:
    """Names or numbers of samples, one a line.

    A number is the position of a sample in the target's test split, from 0. A name is the end of a sample's stable
    name: ``n01440764/ILSVRC2012_val_00000293.JPEG`` means that image of every corruption and severity.

    Args:
        path: a text file. Empty lines do not count.

    Raises:
        UserError: if the file is missing, no text, or empty, or lists a sample twice.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with reading("the list of images (data.images)", user_path(path)):
            content = user_path(path).read_bytes()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(
                f"the list of images {path} (data.images) is not UTF-8: save it in that encoding"
            ) from error
        self.lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not self.lines:
            raise UserError(f"the list of images {path} (data.images) is empty")
        twice = [line for line, count in Counter(self.lines).items() if count > 1]
        if twice:
            raise UserError(f"the list of images {path} (data.images) names {twice[0]} twice")
        self.are_numbers = all(line.isascii() and line.isdigit() for line in self.lines)

    @property
    def described(self) -> str:
        """How many images the list has, its file's name, and a hash of its lines."""
        hashed = blake2b("\n".join(self.lines).encode(), digest_size=4).hexdigest()
        return f"{len(self.lines)} listed in {Path(self.path).name} ({hashed})"

    def positions(self, domain: Domain) -> NDArray[np.int64]:
        """The positions of the listed samples in a domain, in the order of the list.

        Raises:
            UserError: naming a line that the domain has no sample for, or more than one.
        """
        found = self._numbered(domain) if self.are_numbers else self._named(domain)
        lacking = [line for line in self.lines if found.get(line) is None]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise UserError(
                f"{self.path} (data.images) lists {lacking[0]}{more}, which the {len(domain)} test samples of "
                f"{domain.name} do not have"
            )
        return np.asarray([found[line] for line in self.lines], dtype=np.int64)

    def _numbered(self, domain: Domain) -> dict[str, int]:
        return {line: int(line) for line in self.lines if int(line) < len(domain)}

    def _named(self, domain: Domain) -> dict[str, int]:
        """The position of the sample that each line means."""
        wanted = {PurePosixPath(line.replace("\\", "/")).parts: line for line in self.lines}
        lengths = sorted({len(parts) for parts in wanted})
        found: dict[str, int] = {}
        for position in range(len(domain)):
            parts = tuple(domain.id(position).split("/"))
            for length in lengths:
                line = wanted.get(parts[-length:])
                if line is not None and found.setdefault(line, position) != position:
                    raise UserError(
                        f"{self.path} (data.images) lists {line}, which is the end of two names of {domain.name}: "
                        f"{domain.id(found[line])} and {domain.id(position)}"
                    )
        return found
