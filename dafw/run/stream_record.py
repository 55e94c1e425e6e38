"""Looks back at a stream after it has ended: here what was served meets the labels, outside the method."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from dafw.data.stream_plan import StreamPlan
from dafw.errors import UserError
from dafw.methods import Method, TestTimeMethod
from dafw.run.stream_result import Setting, StreamResult
from datamodules.base import DomainDataModule

BINS = 60
"""Equal parts of a stream, of which each has an error."""
WINDOW = 100
"""Samples of a window; at least those of a batch."""
SOURCE_SAMPLES = 2000
"""Greatest number of test samples of each source that the final weights are tried on."""
TIMED = 20
"""Most batches on which the start model's speed is measured."""
SECONDS = 3.0
"""Seconds after which no further batch is begun for it."""

Errors = NDArray[np.float64]


def stream_result(method: Method, data: DomainDataModule, seconds: float, ranks: int) -> StreamResult | None:
    """What happened on the stream of a run.

    Args:
        method: the method after its test.
        data: the data of the run.
        seconds: that the stream took; 0 if nobody knows.
        ranks: number of processes.

    Returns:
        ``None`` for a method that meets no stream, or whose stream was another one than the data has now.
    """
    if not isinstance(method, TestTimeMethod):
        return None
    plan, served = data.stream_plan, method.served
    if not served.is_of(data.train_domains or [data.domain(name, "test") for name in data.target], plan):
        return None
    labels = labels_of(data, plan)
    wrong = errors(served.logits.argmax(1).cpu(), labels)
    start_wrong = errors(served.start_classes.cpu(), labels)
    window = min(len(plan), max(WINDOW, data.target_batch_size))
    domains = {
        name: _domain_scores(method, plan.rows.domain == number, labels, wrong, start_wrong)
        for number, name in enumerate(data.target)
    }
    domains = {name: found for name, found in domains.items() if found}
    used = served.used.cpu().numpy()
    moved = np.bincount(plan.batch, weights=used) > 0
    speed = {"seconds": seconds, "samples_per_second": len(plan) / seconds} if seconds else {}
    return StreamResult(
        protocol=protocol_of(method, data),
        samples=len(plan),
        domains=domains,
        mean=means(domains.values()),
        bins={name: bins(values) for name, values in (("error", wrong), ("start_error", start_wrong))},
        segments=tuple(segments(plan, wrong, window)),
        worst=worst_window(wrong, window),
        window=window,
        used={"samples": float(used.mean()), "steps": float(moved.mean())},
        uploads={"samples": float(used.sum()), "share": float(used.mean())} if method.counts_uploads else {},
        resets=int(method.restarts),
        source=_source(method, data),
        speed={**speed, "start_samples_per_second": ranks * _start_speed(method, data)},
    )


def served_rows(method: Method, data: DomainDataModule) -> list[list[object]]:
    """A header and a line for each position of a stream: what was served there, when, and whether a step used it.

    The arguments are those of :func:`stream_result`, and a run without a stream has nothing but the header.
    """
    rows: list[list[object]] = [
        ["position", "domain", "sample", "step", "used", "predicted", "confidence", "start_predicted", "label"]
    ]
    if not isinstance(method, TestTimeMethod):
        return rows
    plan, served = data.stream_plan, method.served
    domains = [data.domain(name, "test") for name in data.target]
    names = {-1: "", **dict(enumerate(data.known_names))}
    columns = [served.step, served.used.long(), served.logits.argmax(1), served.confidence, served.start_classes]
    values = zip(*(column.tolist() for column in (*columns, labels_of(data, plan))), strict=True)
    places = zip(plan.rows.domain.tolist(), plan.rows.index.tolist(), strict=True)
    for position, ((domain, index), (step, used, predicted, confidence, start, label)) in enumerate(
        zip(places, values, strict=True)
    ):
        said = [names[predicted], round(confidence, 6), names[start], names[label]]
        rows.append([position, domains[domain].name, domains[domain].id(index), step, used, *said])
    return rows


def protocol_of(method: TestTimeMethod, data: DomainDataModule) -> dict[str, Setting]:
    """The settings that a number on a stream depends on, by name."""
    network: Any = method.network
    return {
        "stream": data.stream.described,
        "stream_order": data.stream_order,
        "ordered_by_labels": data.stream.correlated is not None,
        "order_seed": data.seed,
        "batch_size": data.target_batch_size,
        "images_per_domain": data.images_per_domain if data.image_list is None else data.image_list.described,
        "reset": method.reset_policy,
        "knows_shifts": method.knows_shifts,
        "statistics": method.statistics_in_words,
        "learns": method.learns,
        "normalisation": f"mean {_numbers(network.mean)}, std {_numbers(network.std)}",
        "source_use": method.source_use,
    }


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def labels_of(data: DomainDataModule, plan: StreamPlan) -> Tensor:
    """The label of each sample of a stream, (N,); -1 where there is none, and of a class that the model lacks."""
    found = np.full(len(plan), -1, dtype=np.int64)
    for number, name in enumerate(data.target):
        classes = data.domain(name, "test").classes
        if classes is not None:
            own = plan.rows.domain == number
            found[own] = classes[plan.rows.index[own]]
    found[found >= data.num_classes] = -1
    return torch.from_numpy(found)


def errors(classes: Tensor, labels: Tensor) -> Errors:
    """1 for a wrong prediction, 0 for a right one, NaN where there is no label or no prediction, (N,)."""
    wrong = (classes != labels).to(torch.float64)
    return wrong.masked_fill((labels < 0) | (classes < 0), torch.nan).numpy()


def mean_of(values: Errors) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def means(domains: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over domains, each of the same weight."""
    found = list(domains)
    return {name: float(np.mean([one[name] for one in found])) for name in (found[0] if found else ())}


def bins(values: Errors, count: int = BINS) -> tuple[float, ...]:
    """The mean in equal parts of a stream, of which there are at most ``count``."""
    return tuple(mean_of(part) for part in np.array_split(values, min(count, len(values))))


def segments(plan: StreamPlan, wrong: Errors, window: int) -> Iterable[dict[str, Any]]:
    """Each segment, with the errors around its beginning, see :class:`~dafw.run.stream_result.StreamResult`."""
    starts = [*plan.starts.tolist(), len(plan)]
    for number, name in enumerate(plan.segments):
        start, end = starts[number : number + 2]
        found = {"domain": name, "position": start, "after": mean_of(wrong[start : min(end, start + window)])}
        if number:
            found["before"] = mean_of(wrong[max(starts[number - 1], start - window) : start])
        yield found


def worst_window(wrong: Errors, window: int) -> dict[str, float]:
    """The window of consecutive labelled samples with the greatest error; empty without a label."""
    places = np.flatnonzero(~np.isnan(wrong))
    if not len(places):
        return {}
    width = min(window, len(places))
    sums = np.convolve(wrong[places], np.ones(width), "valid")
    worst = int(sums.argmax())
    return {"error": float(sums[worst] / width), "position": float(places[worst])}


def _domain_scores(
    method: TestTimeMethod, own: NDArray[np.bool_], labels: Tensor, wrong: Errors, start_wrong: Errors
) -> dict[str, float]:
    """The numbers of one domain; none without labels."""
    rows = torch.from_numpy(own) & (labels >= 0)
    if not rows.any():
        return {}
    chosen, classes = method.served.logits[rows.to(method.device)].double().cpu(), labels[rows]
    ece = multiclass_calibration_error(chosen.softmax(1), classes, num_classes=chosen.shape[1], n_bins=15, norm="l1")
    return {
        "error": mean_of(wrong[own]),
        "start_error": mean_of(start_wrong[own]),
        "ece": float(ece),
        "nll": float(F.cross_entropy(chosen, classes)),
        "samples": float(rows.sum()),
    }


@torch.no_grad()
def _source(method: TestTimeMethod, data: DomainDataModule) -> dict[str, float]:
    """How well the final weights and the start model do on the source's test samples, if these are at hand."""
    right = {"start": 0.0, "final": 0.0}
    samples = 0
    for name in data.source:
        try:
            domain = data.domain(name, "test")
            if domain.labels is None:
                return {}
            part = domain.subset(range(0, len(domain), max(1, -(-len(domain) // SOURCE_SAMPLES))))
            for given in data.evaluation_loader(part, shard=False):
                batch = given.unlabelled().to(method.device)
                for which, outputs in (
                    ("start", method.start_outputs(batch)),
                    ("final", method.present_outputs(batch)),
                ):
                    right[which] += float((outputs.logits.argmax(1).cpu() == given.y).sum())
                samples += len(batch)
        except (UserError, OSError):  # the source is not here
            return {}
    return {**{which: count / samples for which, count in right.items()}, "samples": float(samples)}


@torch.no_grad()
def _start_speed(method: TestTimeMethod, data: DomainDataModule) -> float:
    """Samples a second that the start model predicts, the first batches of this rank, for some seconds."""
    batches = iter(data.replay())
    method.start_outputs(next(batches).to(method.device))
    began, samples = time.perf_counter(), 0
    for batch, _ in zip(batches, range(TIMED), strict=False):
        outputs = method.start_outputs(batch.to(method.device))
        samples += len(batch) - batch.num_again
        if time.perf_counter() - began > SECONDS:
            break
    if not samples:
        return float("nan")
    outputs.logits.sum().item()  # waits for a GPU
    return samples / (time.perf_counter() - began)
