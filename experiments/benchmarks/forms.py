"""A training step in dafw's default forms beside the same step in plain torch: channels-last memory, a fused optimiser.

Both are the same loop: a supervised loss, no Lightning. Each form is measured alone too.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from harness import Measure, interleave, say, timed

from dafw.nn.network import Network
from dafw.optim.optimizers import make_optimizer

OPTIMIZERS = ("momentum", "adamw")
#: Whether channels-last memory and the fused optimiser are left to dafw (``None``) or switched off.
FORMS: dict[str, tuple[bool | None, bool | None]] = {
    "dafw": (None, None),
    "channels last": (None, False),
    "fused": (False, None),
    "plain": (False, False),
}


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Args:
        backbone: the network's backbone.
        size: height and width of the images, in pixels.
        batch: images a step.
        block: steps that are timed together.
        rounds: rounds of two blocks of each.
        fixed: whether the backbone is built for one size of images.
        limit: of the ratio of both forms together to plain torch.
        device: ``cpu`` or ``cuda``.
    """

    backbone: str
    size: int
    batch: int = 64
    block: int = 1
    rounds: int = 6
    fixed: bool = False
    limit: float | None = 1.0
    device: str = "cpu"


SETTINGS = (
    Setting("mnist_net", 28, block=10, rounds=10, fixed=True),
    Setting("small_bn_net", 20, block=10, rounds=10, fixed=True),
    Setting("resnet18", 64),
    Setting("resnet50", 96, batch=16),
    Setting("tf_efficientnet_lite0", 80),
    Setting("vit_tiny_patch16_224", 64, fixed=True, limit=None),
)
QUICK = (Setting("mnist_net", 16, batch=4, rounds=1, fixed=True),)


class Steps:
    """The loop in one form.

    Args:
        setting: what is trained.
        optimizer: name of the optimiser.
        form: whether the network is in channels-last memory, and whether the optimiser is fused.
        dtype: of the weights.
    """

    def __init__(
        self,
        setting: Setting,
        optimizer: str,
        form: tuple[bool | None, bool | None],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(0)
        size = setting.size if setting.fixed else None
        self.network = Network(setting.backbone, input_size=size, channels_last=form[0])
        self.network.set_classes(10)
        self.network.to(setting.device, dtype).train()
        shape = (setting.batch, 3, setting.size, setting.size)
        self.x = torch.randint(0, 256, shape, dtype=torch.uint8).to(setting.device)
        self.y = torch.randint(0, 10, (setting.batch,)).to(setting.device)
        groups = self.network.parameter_groups(1e-3)
        self.optimizer = make_optimizer(optimizer, groups, lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=form[1])
        self.block, self.device = setting.block, setting.device

    def __call__(self) -> float:
        """Makes a block of steps.

        Returns:
            Seconds a step, by the processor's clock; by the wall's on a GPU.
        """
        start = self._clock()
        for _ in range(self.block):
            self.optimizer.zero_grad()
            F.cross_entropy(self.network(self.x).logits, self.y).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return (self._clock() - start) / self.block

    def _clock(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


def largest_difference(setting: Setting, steps: int = 3) -> float:
    """Largest difference of any weight or running statistic after training in dafw's and in the plain form, in float64.

    SGD alone is compared. Adam would enlarge the rounding of gradients that are 0.
    """
    small = replace(setting, batch=4, block=steps)
    states = []
    for name in ("dafw", "plain"):
        loop = Steps(small, "momentum", FORMS[name], torch.float64)
        loop()
        states.append(loop.network.state_dict())
    return max(float((value.double() - states[1][key].double()).abs().max()) for key, value in states[0].items())


def measure(quick: bool = False, device: str = "cpu") -> list[Measure]:
    """Steps in the default forms, and in each of them alone, beside plain steps.

    Raises:
        AssertionError: if the forms do not train the same weights.
    """
    measures: list[Measure] = []
    for setting in (replace(item, device=device) for item in (QUICK if quick else SETTINGS)):
        difference = largest_difference(setting)
        say(f"forms, {setting.backbone}: largest difference from plain torch {difference:.1e} in float64")
        assert difference <= 1e-9, f"the forms differ by {difference} on {setting}"
        for optimizer in OPTIMIZERS:
            measures += _measure(setting, optimizer)
    return measures


def _measure(setting: Setting, optimizer: str) -> list[Measure]:
    loops: dict[str, Callable[[], float]] = {name: Steps(setting, optimizer, form) for name, form in FORMS.items()}
    where = f"{setting.backbone}, {setting.size} px, batch {setting.batch}, {optimizer}"
    found = {
        name: [1e3 * seconds for seconds in taken]
        for name, taken in interleave(loops, setting.rounds, f"forms, {where}").items()
    }
    rows = {"dafw": "default forms", "channels last": "channels_last alone", "fused": "fused alone"}
    return [
        timed(f"{title}, {where}", "ms", found[name], found["plain"], limit=setting.limit if name == "dafw" else None)
        for name, title in rows.items()
    ]
