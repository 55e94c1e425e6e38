"""What the base offers to every method keeps the contract too: the norms, a moving average, other optimisers."""

import math
from pathlib import Path
from typing import Any

import pytest

from dafw.testing import Case, contract

DANN = "dafw.methods.adaptation.dann.DANN"
CDAN = "dafw.methods.adaptation.cdan.CDAN"
PARETO = "dafw.methods.adaptation.pareto_da.ParetoDA"
TINY: dict[str, Any] = {"width": 8, "depth": 1}
CASES = [
    Case(DANN, {**TINY, **arguments}, label=label)
    for label, arguments in {
        "separate": {"norm": "separate"},
        "domain_specific": {"norm": "domain_specific", "critic_norm": True},
        "frozen": {"norm": "frozen"},
        "moving_average": {"ema_decay": 0.8, "norm": "domain_specific"},
        "adamw": {"optimizer": "adamw", "lr": 0.003, "weight_decay": 0.1},
        "steps": {"gamma": 1.0, "ramp_steps": 5, "optimizer": "sgd"},
    }.items()
]
CASES.append(Case(CDAN, {**TINY, "randomized": True, "random_width": 6}, label="randomized"))
CASES.append(Case("dafw.methods.adaptation.afn.AFN", {"variant": "hard", "radius": 3.0}, label="hard"))
ADDA = {**TINY, "encoder_loss": "reversed", "ramp_steps": 2, "pretrain": 0.75, "ema_decay": 0.8}
CASES.append(Case("dafw.methods.adaptation.adda.ADDA", ADDA, label="separated_after_the_resumed_step"))
MCD = {"norm": "separate", "ema_decay": 0.8, "parts": {"backbone": {"momentum": 0.0}}, "weight_decay": 0.1}
CASES.append(Case("dafw.methods.adaptation.mcd.MCD", MCD, label="mcd_own_momentum"))
SDAT = {**TINY, "domain_at": "perturbed", "rho": 0.5, "norm": "domain_specific", "ema_decay": 0.8}
CASES.append(Case("dafw.methods.adaptation.sdat.SDAT", SDAT, label="sdat_of_its_authors"))
PADA = {**TINY, "ema_decay": 0.8, "norm": "domain_specific"}
CASES += [
    Case("dafw.methods.adaptation.pada.PADA", {**PADA, **arguments}, label=label)
    for label, arguments in {
        "pada_refreshed_at_the_resumed_step": {"refresh_every": 5, "mode": "authors"},
        "pada_tllib": {"refresh_every": 2, "mode": "tllib", "temperature": 0.1},
    }.items()
]
OSBP = {"gamma": 1.0, "boundary": 0.3, "ema_decay": 0.8, "norm": "domain_specific"}
CASES.append(Case("dafw.methods.adaptation.osbp.OSBP", OSBP, network={"head_width": 6}, label="osbp_hidden_head"))
DCC = "dafw.methods.adaptation.dcc.DCC"
BALANCED: dict[str, Any] = {"classes": 4, "per_class": 3, "kmeans_trials": 1, "ramp_steps": None}
CASES += [
    Case(DCC, {**BALANCED, "warmup_steps": 4, "ema_decay": 0.8, "cdd_normaliser": "matched"}, label="dcc_warm_up"),
    Case(DCC, {**BALANCED, "per_class": 20, "norm": "joint"}, label="dcc_unmatched"),
    Case(DCC, {**BALANCED, "sharpness": {"class_path": "dafw.optim.sharpness.SAM", "init_args": {}}}, label="dcc_sam"),
]
MEMSPM = {**BALANCED, "items": 6, "sub_prototypes": 2, "top_k": 3, "head_width": 6, "decoder_widths": [4, 4]}
KEPT = {"frozen": True, "feature_cache": 50}  # fewer than there are
CASES.append(Case("dafw.methods.adaptation.memspm.MemSPM", MEMSPM, network=KEPT, label="memspm_frozen"))
STARTED = {**MEMSPM, "start": "data", "cosine": True, "read_temperature": 0.05, "ema_decay": 0.8}
CASES += [
    Case("dafw.methods.adaptation.memspm.MemSPM", {**STARTED, "warmup_steps": steps}, label=f"memspm_start_{steps}")
    for steps in (0, 4, 6)  # 6 is within an epoch
]
CASES.append(Case(DANN, TINY, {"source_sampling": "class_balanced"}, label="class_balanced_source"))
CASES += [
    Case("dafw.methods.adaptation.shallow.Shallow", arguments, label=f"shallow_{arguments['classifier']}")
    for arguments in (
        {"classifier": "nearest", "alignment": "subspace", "dimensions": 3, "ema_decay": 0.8},
        {"classifier": "svm", "norm": "separate"},
    )
]
SHOT = "dafw.methods.source_free.shot.SHOT"
PAPER = {"bottleneck": 8, "bottleneck_relu": False, "head": "weight_norm", "backbone_lr": 0.1}
CASES += [
    Case(SHOT, {"ema_decay": 0.8, "epsilon": 1e-5, "threshold": 2}, network=PAPER, label="shot_paper_network"),
    Case(SHOT, {"norm": "frozen", "refresh_every": 3, "pseudo_delay": 1}, label="shot_frozen"),
    Case(SHOT, {"pseudo_weight": 0.0}, label="shot_im"),
]
CASES += [
    Case(PARETO, {**TINY, "class_width": 4, **arguments}, {"count": 80}, label=label)
    for label, arguments in {
        "authors": {"mode": "authors", "norm": "joint", "critic_norm": True, "ema_decay": 0.8},
        "uniform": {"norm": "domain_specific", "combination": "uniform"},
        "guided_by_last": {"guided_above": 0.0, "weigh_by": "last", "ema_decay": 0.8},
    }.items()
]
ERM = "dafw.methods.generalization.erm.ERM"


def rule(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"dafw.optim.sharpness.{name}", "init_args": arguments}


CASES += [
    Case(ERM, {"sharpness": rule("SAM", rho=0.5), "optimizer": "adam", "lr": 0.003}, label="sam"),
    Case(ERM, {"sharpness": rule("SAGM", rho=0.5, alpha=0.1), "ema_decay": 0.8}, label="sagm"),
    Case(ERM, {"sharpness": rule("GAM", rho=0.1, gamma=0.5)}, label="gam"),
    Case(ERM, {"sharpness": rule("GAMObjective", rho=0.1)}, label="gam_objective"),
    Case(DANN, {**TINY, "sharpness": rule("SAM", rho=0.2), "norm": "separate"}, label="dann_sam"),
]
IRM = "dafw.methods.generalization.irm.IRM"
ADAM: dict[str, Any] = {"optimizer": "adam", "lr": 0.003}
CASES += [
    Case(IRM, {"anneal_steps": 3, **ADAM, "ema_decay": 0.8}, label="irm_resumed_after_the_jump"),
    Case(IRM, {"anneal_steps": 5, **ADAM, "sharpness": rule("SAM", rho=0.2)}, label="irm_resumed_at_the_jump"),
    Case("dafw.methods.generalization.group_dro.GroupDRO", {"rate": 0.5, "sharpness": rule("SAM")}, label="dro_sam"),
    Case("dafw.methods.generalization.fish.Fish", {"ema_decay": 0.8, **ADAM}, label="fish_adam"),
    Case("dafw.methods.generalization.mixup.Mixup", {"sharpness": rule("SAM", rho=0.2)}, label="mixup_sam"),
    Case("dafw.methods.generalization.rsc.RSC", {}, network={"head_width": 6}, label="rsc_hidden_head"),
]
DRM = "dafw.methods.generalization.drm.DRM"
CASES += [
    Case(DRM, {"ema_decay": 0.8, "weight": 0.3, "mode": "authors"}, label="drm_moving_average"),
    Case(DRM, {"select": "cosine", "memory": 3, "ema_decay": 0.8}, label="drm_cosine"),
    Case(DRM, {"select": "distance", "p": 1.0, "gamma": math.inf, "sharpness": rule("SAM")}, label="drm_distance"),
    Case(DRM, {"select": "domain_classifier", "width": 8, **ADAM}, label="drm_domain_classifier"),
]
RETRAINING = "dafw.methods.test_time.drm_retraining.DRMRetraining"
CASES += [
    Case(RETRAINING, {"retrain": "network", "labels": "own", "confidence": 0.4, "steps": 2}, label="drm_full"),
    Case(RETRAINING, {"labels": "shared", "confidence": 0.4, "reset": "never"}, label="drm_never_reset"),
    Case(RETRAINING, {"labels": "uniform", "confidence": 0.4, "reset": 3}, label="drm_reset_every_third"),
]
BATCH_NORM = "dafw.methods.test_time.batch_norm_adapt.BatchNormAdapt"
TENT, SURE = "dafw.methods.test_time.tent.Tent", {"margin": 0.9, "redundancy": 0.9}
CASES += [
    Case(BATCH_NORM, {"statistics": "average", "statistics_momentum": 0.3}, label="bn_ema"),
    Case(BATCH_NORM, {"statistics": "mixed", "target_weight": 0.3, "reset": "shift"}, label="alpha_bn"),
    Case(TENT, {"learns": "network", "statistics": "average", **ADAM}, label="tent_of_all_on_an_average"),
    Case(TENT, {"learns": "head", "ema_decay": 0.8, "optimizer": "momentum"}, label="tent_of_the_head"),
    Case("dafw.methods.test_time.eata.ETA", {**SURE, "reset": "shift", **ADAM}, label="eta_reset"),
    Case("dafw.methods.test_time.eata.RDumb", {**SURE, "reset": 5}, label="rdumb_at_the_resumed_step"),
    Case(
        "dafw.methods.test_time.sar.SAR",
        {"margin": 1.0, "skip": [], "recover_below": 1.0, "statistics": "mixed"},
        label="sar_recovers",
    ),
    Case(
        "dafw.methods.test_time.deyo.DeYO",
        {"margin": 0.95, "threshold": 0.0, "skip": [], "destroy": "pixels", **ADAM},
        label="deyo_pixels",
    ),
    Case(
        "dafw.methods.test_time.cafa.CAFA",
        {"per_class_covariance": True, "source_samples": 20, "learns": "network", "statistics": "mixed", **ADAM},
        label="CAFA_per_class",
    ),
]
CDANN = {"width": 8, "depth": 1, "critic_steps": 2, "optimizer": "adam", "lr": 0.003, "ema_decay": 0.8}
CASES.append(Case("dafw.methods.generalization.domain_adversarial.DomainBedCDANN", CDANN, label="cdann_two_steps"))
UDIM = "dafw.methods.generalization.udim.UDIM"
CASES += [
    Case(UDIM, {"warmup": 0.75, "mode": "authors", "ema_decay": 0.8}, label="udim_after_the_resumed_step"),
    Case(UDIM, {"warmup": 0.7, "restart": True, "optimizer": "adam", "lr": 0.003}, label="udim_back_to_the_best"),
    Case(UDIM, {"warmup": 0.0, "perturb": "style", "pooled": True, "radius": 5.0}, label="udim_style"),
    Case(UDIM, {"warmup": 0.0, "mode": "authors", "sharpness": rule("GAM", rho=0.1)}, label="udim_gam"),
]
LOCAL = Case(ERM, {"sharpness": rule("SAM", rho=0.5, local=True), "norm": "frozen"}, label="local_sam")
CASES.append(LOCAL)
every_variant = pytest.mark.parametrize("item", CASES, ids=lambda item: item.name)


@every_variant
def test_resume(item: Case, resumed: dict[str, Any]) -> None:
    assert resumed[item.name] == {}


@every_variant
def test_ranks(item: Case, ranked: dict[str, float]) -> None:
    assert ranked[item.name] > 1e-6 if item is LOCAL else ranked[item.name] <= 1e-9


@every_variant
def test_label_blind_and_round_trip(item: Case, tmp_path: Path) -> None:
    contract.check_label_blind(item, tmp_path)
    contract.check_round_trip(item, tmp_path)


@pytest.mark.parametrize("item", [item for item in CASES if item.name in ("separate", "domain_specific", "frozen")])
def test_control(item: Case, tmp_path: Path) -> None:
    contract.check_control(item, tmp_path)
