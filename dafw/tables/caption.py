"""The sentences under a table, which say what its numbers are."""

import math
from collections import Counter
from collections.abc import Iterable

from dafw.escape import named
from dafw.run.criteria import LEFT_OUT
from dafw.run.result import SettingRecord
from dafw.tables.fields import target_columns
from dafw.tables.overlay import merge
from dafw.tables.protocols import grouped, protocol_sentences, published_sentences
from dafw.tables.published import MARKS, MEANINGS
from dafw.tables.store import Store

#: Explains the metrics whose names have two meanings in papers.
METRICS = {
    "h_score": "The h score is the harmonic mean of two accuracies, over the samples of common classes, all together, "
    "and over those of unknown classes; h_score_class_mean, with the mean over common classes, is another number.",
    "h_score_class_mean": "The h score class mean is the harmonic mean of two accuracies, the mean over the common "
    "classes and that over samples of unknown classes; h_score, over all common samples together, is another number.",
    "sub_prototype_purity": "Sub prototype purity: share of a class's samples whose target is the most frequent one "
    "of their sub-prototype; it grows with the number of sub-prototypes in use, sub_prototype_ami does not.",
    "miou": "mIoU: the intersection over union of each class from one confusion matrix of all pixels of the test split "
    "(not a mean over images), then the mean over classes.",
    "mdice": "mDice: the Dice coefficient of each class in each image, the mean over images, then that over classes.",
    "mdice_volume": "mDice volume: the Dice coefficient of each class in each volume of slices, the mean over volumes, "
    "then that over classes.",
    "ap50": "AP50: COCO's average precision at an overlap of 0.5 (ap: coco), the mean over 101 recalls, then over "
    "classes; papers with VOC's differ by a point or two.",
    "ap50_voc07": "AP50 voc07: average precision at an overlap of 0.5 of PASCAL VOC until 2009 (ap: voc07), the mean "
    "over 11 recalls, then over classes.",
    "ap50_voc": "AP50 voc: average precision at an overlap of 0.5 of PASCAL VOC since 2010 (ap: voc), the area under "
    "the curve, then the mean over classes.",
    "ap": "AP: COCO's average precision, the mean over 101 recalls and the overlaps 0.5, 0.55, ..., 0.95, then over "
    "classes.",
    "detection_accuracy": "Detection accuracy: right detections over all detections with a score above 0.5 and all "
    "labelled boxes of an image, the mean over images; its mean over domains is GWHD's average domain accuracy.",
    "fpr95": "fpr95: share of known samples rejected where 95 % of the unknown ones are; lower is better.",
}


SUFFIX = "_target_statistics"
TARGET_STATISTICS = (
    "Target statistics: the same weights, with batch statistics that are estimated on the target's training images "
    "before the test."
)
#: By metric that is a mean over classes, what the names of the values of the classes begin with, and what has a label.
BY_CLASS = {
    "miou": ("iou/", "pixel"),
    "mdice": ("dice/", "pixel"),
    "mdice_volume": ("dice_volume/", "pixel"),
    **{name: (f"{name}/", "box") for name in ("ap", "ap50", "ap50_voc07", "ap50_voc")},
}


def caption(store: Store, kinds: Iterable[str], marks: Iterable[str]) -> list[str]:
    """The sentences under a table.

    Args:
        store: the results.
        kinds: kinds of the lines that are shown. Others are not explained.
        marks: marks that are shown.
    """
    found = (*_numbers(store), *_lines(store, set(kinds), set(marks)), *provenance(store))
    return [sentence for sentence in found if sentence]


def _numbers(store: Store) -> list[str]:
    table = store.table
    n = len(table.seeds)
    over = (
        f"mean ± sample std over {n} seeds ({', '.join(map(str, table.seeds))})"
        if n > 1
        else f"of one seed ({table.seeds[0]})"
    )
    odd = "a field over another number of seeds says its n." if n > 1 else "hence no std."
    known = store.oracles
    oracles, monitoring = [row.name for row in table.rows if row.name in known], store.monitoring
    unseen = not oracles and not monitoring and "oracle" not in table.select
    several = len(table.tasks) > 1
    targets = bool(target_columns(table.tasks))
    lowest = f"the {'target' if targets else 'task'} with the lowest mean"
    return [
        f"Target test {' and '.join(metric.replace('_', ' ') for metric in table.metrics)} in %, {over}; {odd}",
        *(METRICS.get(metric, "") for metric in table.metrics),
        TARGET_STATISTICS if any(metric.endswith(SUFFIX) for metric in table.metrics) else "",
        *_classes(store),
        *_empty_images(store),
        *_label_sets(store),
        "Checkpoint: last, the final weights." if table.select == ("last",) else "",
        "A task of several targets has a column for each, then one for their mean." if targets else "",
        f"average: over the tasks at each seed, then over seeds; worst: {lowest}." if several else "",
        f"worst: {lowest}." if targets and not several else "",
        f"Rows marked (oracle) use target labels in training: {named(*oracles)}." if oracles else "",
        *_oracle(store),
        f"A callback was allowed to monitor target labels in: {named(*monitoring)}." if monitoring else "",
        "No target label was used to train or to select a checkpoint." if unseen else "",
        *_left_out(store),
        *_trained_validation(store),
        *_test_splits(store),
        *_ranks(store),
        *_settings(store),
        *_pretrained(store),
        *protocol_sentences(store),
        *published_sentences(store),
        *_transductive(store),
        *_averaged(store),
        *table.notes,
        *_starts(store),
        f"This is a part of the table: {table.narrowed}." if table.narrowed else "",
        f"Every cell was overlaid with {_flat(merge({}, dict(table.settings)))}." if table.settings else "",
    ]


def _oracle(store: Store) -> list[str]:
    """Says what the criterion oracle reads, and its metric if that is not the printed one."""
    others = {result.run.metric for result in store.results.values() if "oracle" in result.criteria}
    others -= {store.table.metric}
    by = f", by {' or '.join(sorted(name.replace('_', ' ') for name in others))}" if others else ""
    said = f"The criterion oracle chooses the checkpoint with target validation labels{by}."
    return [said] if "oracle" in store.table.select else []


def _classes(store: Store) -> list[str]:
    """Says over how many classes a mean over classes is, and names those that the test data of a target lacks."""
    first, part = BY_CLASS.get(store.table.metric.removesuffix(SUFFIX), (None, ""))
    targets: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for result in store.results.values():
        for target in result.run.target:
            values = result.run.test.get(target, {}).items() if first is not None else ()
            own = ((name, value) for name, value in values if not name.endswith(SUFFIX))
            found = {name.removeprefix(first or ""): value for name, value in own if name.startswith(first or "")}
            absent = tuple(name for name, value in found.items() if math.isnan(value))
            named = targets.setdefault((len(found) - len(absent), absent), []) if found else []
            named += [] if target in named else [target]
    sentences = []
    for (count, absent), names in targets.items():
        where = f" on {', '.join(names)}" if len(targets) > 1 else ""
        lacking = f"; no test {part} is labelled {', '.join(absent)}" if absent else ""
        sentences.append(f"The mean is over {count} class{'es' * (count != 1)}{where}{lacking}.")
    return sentences


def _empty_images(store: Store) -> list[str]:
    """Says which share of the test images of each target has no labelled box, if some have none."""
    shares = {
        target: share
        for result in store.results.values()
        for target in result.run.target
        if (share := result.run.test.get(target, {}).get("images_without_box"))
    }
    said = ", ".join(f"{100 * share:.1f} % of those of {target}" for target, share in shares.items())
    return [f"Test images without a labelled box count too: {said}."] if said else []


def _label_sets(store: Store) -> list[str]:
    """Says how many classes source and target share, if they do not share all."""
    found = {tuple(result.run.label_sets.items()): result.run.label_sets for result in store.results.values()}
    return [
        f"Label sets: {sets['kind']}, {sets['common']} classes common, {sets['source_private']} of the source alone, "
        f"{sets['target_private']} of the target alone."
        for sets in found.values()
        if sets.get("kind", "closed") != "closed"
    ]


def _starts(store: Store) -> list[str]:
    """Names the rows that start from others, and the criteria that a row cannot have."""
    sentences = []
    starts: dict[str, list[str]] = {}
    for row in store.table.rows:
        if row.start is not None:
            starts.setdefault(row.start, []).append(row.name)
    for start, rows in starts.items():
        verb = "starts" if len(rows) == 1 else "start"
        sentences.append(f"{named(*rows)} {verb} from the models of {named(start)}, of the same task and seed.")
    for row in store.table.rows:
        if row.further_sources:
            sentences.append(f"{named(row.name)} trains on {', '.join(row.further_sources)} too, with labels.")
        results = [result for (name, _, _), result in store.results.items() if name == row.name]
        absent = [
            one for one in store.table.select if one != LEFT_OUT and any(result.is_without(one) for result in results)
        ]
        lacking = [one for one in store.table.select if any(result.never_had(one) for result in results)]
        if lacking:
            sentences.append(
                f"{named(row.name)} has no {', '.join(lacking)}: its runs were made without this in run.validators; "
                "remove them to make them again."
            )
        if absent:
            setting = results[0].run.setting
            if setting.stream:
                said = f"{named(row.name)} is {setting.name}: it has no validation, hence no {', '.join(absent)}."
                sentences.append(said)
                continue
            kind, side = (f"a {setting.name} method", "target") if setting.source else (setting.name, "source")
            reads = f"which read{'s' if len(absent) == 1 else ''} {side} samples"
            sentences.append(f"{named(row.name)} is {kind}: there is no {', '.join(absent)}, {reads}.")
    return sentences


def _left_out(store: Store) -> list[str]:
    """Explains the criterion of left-out sources, and names the rows without it."""
    table = store.table
    if LEFT_OUT not in table.select:
        return []
    task = table.tasks[0]
    left, helper = next(reversed(table.without_each_source(task).items()))
    others = [row.name for row in table.rows if row.name in store.oracles]
    return [
        f"{LEFT_OUT}: for {task} the validation step at which the runs without one of the sources score best on it, on "
        f"average over the sources; the run {helper} is scored on the test split of {left}, and what it scores on the "
        f"targets of {task} has no part in the choice. These are {len(table.helpers())} further runs.",
        f"There is no {LEFT_OUT} for what trains on target labels: {named(*others)}." if others else "",
    ]


def _trained_validation(store: Store) -> list[str]:
    """Says that samples of the source trained and validate, and of which rows this holds if not of all."""
    runs = [(name, result.run) for (name, _, _), result in store.results.items() if result.run.setting.source]
    found = {name for name, run in runs if not run.holds_out_source}
    rows = [row.name for row in store.table.rows if row.name in found]
    where = f" in {named(*rows)}" if len(found) < len({name for name, _ in runs}) else ""
    said = f"All samples of a source train{where}, those of its validation and test splits too"
    return [f"{said}: source_accuracy, source_loss and dev are of samples that were trained on."] if found else []


def _test_splits(store: Store) -> list[str]:
    """Names the rows that are tested on different numbers of target samples, for the first task with such rows."""
    for task in store.table.tasks:
        counts: dict[int, list[str]] = {}
        for row in store.table.rows:
            found = {result.run.num_target_test for key, result in store.results.items() if key[:2] == (row.name, task)}
            for count in sorted(found):
                counts.setdefault(count, []).append(row.name)
        if len(counts) > 1:
            said = "; ".join(f"{count:,} for {named(*rows)}" for count, rows in sorted(counts.items(), reverse=True))
            learnt = any(row in store.oracles for rows in counts.values() for row in rows)
            why = " (what trains on target labels is not tested on the samples that it learnt)" if learnt else ""
            return [f"Not all rows are tested on the same target samples. In {task} there are {said}{why}."]
    return []


def _ranks(store: Store) -> list[str]:
    """Says how many ranks trained each row, if the numbers differ."""
    counts: dict[tuple[int, ...], list[str]] = {}
    for row in store.table.rows:
        found = {result.run.ranks for (name, _, _), result in store.results.items() if name == row.name}
        if found:
            counts.setdefault(tuple(sorted(found)), []).append(row.name)
    if len({number for numbers in counts for number in numbers}) < 2:
        return []
    said = "; ".join(f"{' and '.join(map(str, numbers))} for {named(*rows)}" for numbers, rows in counts.items())
    return [f"Ranks a run, by which a run is not told from another: {said}."]


def _settings(store: Store) -> list[str]:
    """Says what the methods may see, if their settings differ or none of them sees the target."""
    settings: dict[SettingRecord, list[str]] = {}
    for row in store.table.rows:
        for setting in {result.run.setting for (name, _, _), result in store.results.items() if name == row.name}:
            settings.setdefault(setting, []).append(row.name)
    if len(settings) == 1 and not any(setting.target for setting in settings):
        (setting,) = settings
        return [f"Setting: {setting.name}, where no image of the target is seen in training."]
    said = "; ".join(f"{setting.name}: {named(*rows)}" for setting, rows in settings.items())
    return [f"The table mixes settings. {said}."] if len(settings) > 1 else []


def _pretrained(store: Store) -> list[str]:
    """Says whose pretrained weights the rows start with, as far as results know it."""
    order = [row.name for row in store.table.rows]
    found = [(key[0], result.run.pretrained) for key, result in store.results.items()]
    known = [(row, whose or "none") for row, whose in found if whose is not None]
    whose = {one for _, one in known}
    if whose <= {"none"}:
        return []
    by_row = grouped(sorted(known, key=lambda pair: order.index(pair[0])))
    same = len(whose) == 1 and len(known) == len(found)
    return [f"Pretrained weights: {whose.pop() if same else by_row}."]


def _transductive(store: Store) -> list[str]:
    """Names the rows that need other test samples for a prediction, and says why."""
    reasons: dict[str, list[str]] = {}
    for row, reason in store.transductive.items():
        reasons.setdefault(reason.rstrip("."), []).append(row)
    said = "; ".join(f"{named(*rows)} ({reason})" for reason, rows in reasons.items())
    return [f"Rows marked (transductive) use other test samples to predict one: {said}."] if said else []


def _averaged(store: Store) -> list[str]:
    """Names the rows with averaged weights, which are the same under every criterion."""
    averaged = store.averaged
    if not averaged or store.table.select == ("last",):
        return []
    by = ", ".join(sorted(set(averaged.values())))
    rows = named(*averaged)
    return [f"{rows}: an average of the weights over training ({by}), hence the same number under every criterion."]


def _flat(overlay: dict[str, object], prefix: str = "") -> str:
    parts = []
    for key, value in overlay.items():
        parts.append(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else f"{prefix}{key}={value}")
    return ", ".join(parts)


def _lines(store: Store, kinds: set[str], marks: set[str]) -> list[str]:
    sentences = []
    if "control" in kinds or "minus control" in kinds:
        sentences.append(
            "control: the same method with its adaptation weight at 0; "
            "minus control: the mean difference over seeds, in brackets its 95 % interval (paired t over seeds)."
        )
    if "published" in kinds:
        shown = [one for one in store.table.published if one.metric == store.table.metric]
        for source in dict.fromkeys(one.source for one in shown):
            notes = list(dict.fromkeys(one.note for one in shown if one.source == source and one.note))
            sentences.append(f"published: as printed in {source}{': ' if notes else ''}{'; '.join(notes)}.")
        sentences += [
            f"{MARKS[name]} {meaning}." for name, meaning in MEANINGS.items() if MARKS[name] in "".join(marks)
        ]
    return sentences


def provenance(store: Store) -> list[str]:
    """The last sentences under a table: the runs behind it, and what made them."""
    results = list(store.results.values())
    cells = store.table.runs()
    sentences = [f"{len(results)} of {len(cells)} runs are done."]
    if results:
        steps = sorted({result.run.steps for result in results})
        often = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
        machines = Counter(result.run.machine for result in results)
        versions = sorted({f"{name} {version}" for result in results for name, version in result.run.versions.items()})
        revisions = {result.run.git_revision[:10] for result in results if result.run.git_revision}
        theirs = {f"{name} {found[:10]}" for result in results for name, found in result.run.repositories.items()}
        sentences.append(
            f"{often} training steps a run, {duration(sum(result.run.seconds['total'] for result in results))} in all."
        )
        sentences.append(f"Machine: {'; '.join(machine for machine, _ in machines.most_common())}.")
        behind = f" (git {', '.join(sorted(revisions) + sorted(theirs))})" if revisions or theirs else ""
        sentences.append(f"Versions: {', '.join(versions)}{behind}.")
    sentences += [f"M{said[1:]}." for said in store.origins]
    untested = list(dict.fromkeys(name for result in results for name in result.run.untested))
    if untested:
        has = "has no labels" if len(untested) == 1 else "have no labels"
        sentences.append(f"{' and '.join(untested)} {has}, so there is no number of a task with such a target.")
    sentences += [f"Broken, counted as missing: {reason}." for reason in store.broken.values()]
    return sentences


def duration(seconds: float) -> str:
    """Seconds as text, for example ``4 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
