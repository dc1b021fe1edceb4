"""A run's privacy statement, from its plan and its ledgers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from privfm.dp.account import Account
from privfm.dp.accounting import accountant_version, epsilon
from privfm.dp.ledger import Ledger
from privfm.dp.peers import check_heads
from privfm.dp.statement import (
    AuditBound,
    AuditVerdict,
    ComposedGuarantee,
    FinalModelGuarantee,
    HospitalStatement,
    PrivacyStatement,
    hospital_statement,
    worst_composition,
)
from privfm.errors import RunError
from privfm.federation.directory import RunDirectory, begun_plan
from privfm.federation.ledgers import declaration_of
from privfm.federation.planning import mechanism_of
from privfm.federation.records import HospitalResult
from privfm.federation.summed import sum_guarantee
from privfm.ids import HospitalId
from privfm.plan import HospitalPlan, Plan

__all__ = [
    "audits_of",
    "composed_result",
    "hospital_result",
    "make_statement",
    "state_run",
    "statement_from",
    "sums_of",
]

PUBLIC = (
    "The default clip norm and bound on losses are measured on procedural images, which show nobody.",
    "Every round's model is scored on scikit-image's photographs, cut into tiles.",
)

ACCOUNTANT = "pld"

BUILT_IN = ("tiles", "phantom")
"""Data of nobody's, which is probed unless the plan says otherwise."""

TRUST = (
    "No trust in the coordinator, in other hospitals or in the masking is needed for the guarantee of a hospital's "
    "patients: noise is added before anything leaves it.",
    "An individual update stays hidden from the coordinator while no more hospitals than max_corrupt collude with it.",
    "Each hospital trusts its own machine, its operating system's entropy and this software.",
    "In a simulated run all hospitals share one process; the steps are the real ones, the separation is not.",
)


def state_run(directory: RunDirectory, hospital: str | None = None) -> PrivacyStatement:
    """Return the statement of a run as its ledgers stand now, finished or not.

    Args:
        hospital: whose row alone is wanted; composition is still over all.

    Raises:
        LedgerError: a ledger is missing, damaged or knows nothing of this run.
        VerificationError: the plan in the folder is not the one that the run was begun with, or a ledger is older than
            another hospital saw it: then it knows of less than was spent.
    """
    plan, facts = begun_plan(directory), directory.facts()
    with ExitStack() as stack:
        ledgers = {
            each.id: stack.enter_context(Ledger.open(directory.ledger(each.id), each.id, read_only=True))
            for each in plan.hospitals
        }
        for ledger in ledgers.values():
            declaration_of(ledger, facts.run)
        check_heads(list(ledgers.values()), run=str(directory.root))
        whole = statement_from(directory, plan, ledgers)
    rows = tuple(row for row in whole.hospitals if hospital in (None, row.id))
    return whole.model_copy(update={"hospitals": rows, "audits": audits_of(directory)})


def statement_from(directory: RunDirectory, plan: Plan, accounts: Mapping[str, Account]) -> PrivacyStatement:
    """Return the statement of a run as it would be with each hospital's account as given."""
    facts = directory.facts()
    return make_statement(
        plan,
        accounts,
        run=facts.run,
        private=facts.private,
        public_data=facts.public_data,
        probed=was_probed(directory, plan),
        for_sums=sums_of(directory, plan, accounts, facts.run),
    )


def was_probed(directory: RunDirectory, plan: Plan) -> bool:
    """Whether held-out patients were looked at: that comes between the files privacy.json and result.json."""
    if (directory.root / "result.json").exists():
        return directory.read_json("result.json").get("probe") is not None
    asked = plan.data.source in BUILT_IN if plan.evaluation.probe is None else plan.evaluation.probe
    return asked and plan.data.held_out > 0 and (directory.root / "privacy.json").exists()


def hospital_result(plan: Plan, name: HospitalId, account: Account, run: str) -> HospitalResult:
    """Return what a hospital spent on a run, beside its public numbers."""
    public = plan.hospital(name)
    mechanism = mechanism_of(plan, public)
    return HospitalResult(
        id=name,
        nominal_units=mechanism.nominal_units,
        sample_rate=mechanism.sample_rate,
        noise_multiplier=mechanism.noise_multiplier,
        steps=account.spent(run),
        epsilon=epsilon(account.events(run), plan.privacy.delta),
        epsilon_allowed=plan.epsilon(public),
        delta=plan.privacy.delta,
    )


def composed_result(plan: Plan, accounts: Mapping[HospitalId, Account], run: str) -> float | None:
    """Return what a run cost a patient with images at as many hospitals as the plan declares; None where at one."""
    spent = {str(name): account.events(run) for name, account in accounts.items()}
    worst = worst_composition(spent, plan.data.max_hospitals_per_patient, plan.privacy.delta)
    return None if worst is None else worst.epsilon


def audits_of(directory: RunDirectory) -> tuple[AuditVerdict, ...]:
    """Return what audits of the run have found, from audit.json; () before one was made.

    Raises:
        RunError: it is not what an audit writes.
    """
    path = directory.root / "audit.json"
    if not path.exists():
        return ()
    try:
        found = directory.read_json(path.name)["audits"]
        return tuple(
            AuditVerdict(audit=each["name"], verdict=each["verdict"], bound=_bound_of(each["name"], each["figures"]))
            for each in found
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not what an audit writes ({type(error).__name__}); run privfm audit again") from None


def _bound_of(name: str, figures: Mapping[str, Any]) -> AuditBound | None:
    """What canaries alone look for: a bound on epsilon."""
    if name != "canaries" or not {"bound", "ceiling", "confidence"} <= figures.keys():
        return None
    return AuditBound(lower_bound=figures["bound"], ceiling=figures["ceiling"], confidence=figures["confidence"])


def sums_of(
    directory: RunDirectory, plan: Plan, ledgers: Mapping[str, Account], run: str
) -> FinalModelGuarantee | None:
    """Return the guarantee for readers of a run's sums, by its records and ledgers; None where it is not proved.

    It is for one run: of several in the ledgers their readers may know the sums of each.
    """
    if any(_rounds_of_others(ledger, run) for ledger in ledgers.values()):
        return None
    charged = {name: _rounds_charged(ledger, run) for name, ledger in ledgers.items()}
    return sum_guarantee(plan, directory.records(), charged, directory.load_checkpoint().model.numel())


def _rounds_charged(ledger: Account, run: str) -> int:
    return sum(record.charged for record in ledger.runs() if record.declaration.run == run)


def make_statement(
    plan: Plan,
    ledgers: Mapping[str, Account],
    *,
    run: str,
    private: bool,
    public_data: Sequence[str],
    probed: bool,
    for_sums: FinalModelGuarantee | None,
) -> PrivacyStatement:
    """Return the statement of a run.

    Args:
        plan: complete.
        ledgers: each hospital's, open.
        run: the run's name, 32 hexadecimal digits.
        private: False when coins were injected or noise left out.
        public_data: what the start was trained on.
        probed: whether held-out patients' images were probed, outside the guarantee.
        for_sums: what holds for users of the final model, see `sum_guarantee`; said only of a private run.
    """
    rows = tuple(_row(plan, hospital, ledgers[hospital.id], run, private) for hospital in plan.hospitals)
    return PrivacyStatement(
        run=run,
        private=private,
        unit=plan.privacy.unit,
        contribution_cap=_contribution(plan),
        as_of=max(ledger.as_of for ledger in ledgers.values()),
        hospitals=rows,
        composed=_composed(plan, ledgers),
        final_model=for_sums if private else None,
        trust_model=TRUST,
        releases=(
            "Each round's update of each hospital, noised, quantised and masked; the coordinator learns the sum.",
            *_loss_release(plan),
            "The global model after every round, and the final backbone.",
            "Each round's attempts, drop-outs and charges: whether a hospital took part is not hidden.",
            "Public keys, encrypted shares, signatures, and each ledger's length and newest hash.",
        ),
        data_touches=_touches(plan, probed=probed),
        tuning_runs=_tuning_runs(plan, ledgers, run),
        public_data=(*public_data, *PUBLIC),
        randomness="operating system entropy through AES-256-CTR" + _draws(plan) if private else _why_not_private(plan),
        accountant=ACCOUNTANT,
        accountant_version=accountant_version(ACCOUNTANT),
    )


def _why_not_private(plan: Plan) -> str:
    why = "coins were injected and can be replayed" if plan.privacy.dp else "the plan leaves noise out"
    return f"NOT PRIVATE: {why}; no guarantee holds for this run"


def _row(plan: Plan, hospital: HospitalPlan, ledger: Account, run: str, private: bool) -> HospitalStatement:
    earlier = [event for record in ledger.runs() if record.declaration.run != run for event in record.events]
    return hospital_statement(
        hospital=hospital.id,
        nominal_units=hospital.nominal_units,
        clip_norm=mechanism_of(plan, hospital).clip_norm,
        event=mechanism_of(plan, hospital).event(plan.planned_steps),
        charged=ledger.events(run),
        earlier=earlier,
        steps_reserved_for_retries=plan.reserved_steps - plan.planned_steps,
        delta=plan.privacy.delta,
        epsilon_allowed=plan.epsilon(hospital),
        lifetime_cap=None if ledger.cap is None else ledger.cap.epsilon,
        private=private and ledger.private,
        asked_out=ledger.asked_out,
    )


def _draws(plan: Plan) -> str:
    return "" if plan.privacy.noise_terms == 1 else f"; each noise value is made of {plan.privacy.noise_terms} draws"


def _loss_release(plan: Plan) -> tuple[str, ...]:
    if not plan.evaluation.local_loss:
        return ()
    return (
        f"Each round's mean loss of each hospital, over a draw of its own, clamped to {plan.evaluation.loss_bound:g} a "
        f"{plan.privacy.unit}, noised and masked; charged as one more step a round.",
    )


def _tuning_runs(plan: Plan, ledgers: Mapping[str, Account], run: str) -> tuple[str, ...]:
    """Return the other runs on the ledgers, any of which may have been looked at to choose this plan."""
    rounds: dict[str, dict[str, int]] = {}
    for hospital in plan.hospitals:
        for other, charged in _rounds_of_others(ledgers[hospital.id], run).items():
            rounds.setdefault(other, {})[hospital.id] = charged
    if not rounds:
        return ("Not known to privfm: whoever chose this plan by looking at runs on these images spent more.",)
    return (
        *(f"Run {name}, {_rounds_by_hospital(each)}; counted in epsilon spent." for name, each in rounds.items()),
        "Runs on these images with other ledgers are not known to privfm, and not counted.",
    )


def _rounds_of_others(ledger: Account, run: str) -> dict[str, int]:
    """Return what the ledger charged to every other run."""
    return {
        each.declaration.run: each.charged for each in ledger.runs() if each.charged and each.declaration.run != run
    }


def _rounds_by_hospital(charged: Mapping[str, int]) -> str:
    most = max(charged.values())
    if len(set(charged.values())) == 1:
        return f"{most} {'round' if most == 1 else 'rounds'} at each of {len(charged)} hospitals"
    return f"{min(charged.values())} to {most} rounds at {len(charged)} hospitals"


def _contribution(plan: Plan) -> str:
    privacy = plan.privacy
    contribution = (
        f"per step the mean gradient over {privacy.images_per_unit} images of a {privacy.unit} in {privacy.views} "
        f"views each, clipped once to an L2 norm of {privacy.clip_norm:g}"
    )
    if privacy.clip_quantile is None:
        return contribution
    return (
        f"{contribution} at first; the norm then follows the {privacy.clip_quantile:.0%} quantile of gradients, by a "
        "noised count that is part of each step's mechanism"
    )


def _composed(plan: Plan, ledgers: Mapping[str, Account]) -> tuple[ComposedGuarantee, ...]:
    """Return the guarantee of a patient seen at as many hospitals as the plan declares, at the worst choice."""
    spent = {name: ledger.events() for name, ledger in ledgers.items()}
    worst = worst_composition(spent, plan.data.max_hospitals_per_patient, plan.privacy.delta)
    return () if worst is None else (worst,)


def _touches(plan: Plan, *, probed: bool) -> tuple[str, ...]:
    touches = ["Training gradients, through the mechanism above; nothing else is computed from training images."]
    if plan.evaluation.local_loss:
        touches = ["Training gradients and each round's mean loss, through the mechanism above, and nothing else."]
    if probed:
        touches.append(
            "Held-out patients' images and labels are read by the linear probe, in the clear and outside the guarantee."
        )
        if plan.data.source in BUILT_IN:
            touches.append("The probe is fitted on the training images too; they are built in and nobody's.")
    touches.append("Losses and counts are written to the hospital's own folder and go nowhere.")
    return tuple(touches)
