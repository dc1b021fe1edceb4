"""`privfm roster`: who takes part in a federation, made from cards and checked by every hospital for itself."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privfm.errors import InputError, VerificationError
from privfm_cli.console import Column, say, show, show_json, show_table

if TYPE_CHECKING:
    from privfm.secagg.cards import Card, Revocation
    from privfm.secagg.roster import Member, Roster

__all__ = ["commands"]

FEWEST = 3

commands = typer.Typer(no_args_is_help=True, help="Make, check and compare rosters: who takes part, with which key.")

Json = Annotated[bool, typer.Option("--json", help="Write one JSON object.")]
RosterFile = Annotated[Path, typer.Argument(metavar="ROSTER", show_default=False)]


@commands.command("make")
def make(
    papers: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[CARD|REVOCATION]...", show_default=False),
    ] = None,
    federation: Annotated[
        str | None, typer.Option("--federation", metavar="NAME", help="For version 1: the undertaking's name.")
    ] = None,
    previous: Annotated[
        Path | None, typer.Option("--previous", metavar="ROSTER", help="For every later version: the one in force.")
    ] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", metavar="NAME", help="Who leaves.")] = None,
    replace: Annotated[
        list[str] | None,
        typer.Option(
            "--replace",
            metavar="NAME",
            help="Whose old key is lost or revoked: you compared the new fingerprint by telephone.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The roster.", show_default="roster-VERSION.json")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a roster from the files that hospitals sent: version 1, or the one after --previous.

    In a later version a new name joins by its card, and a member's new key must be signed by its old one. Whoever
    leaves, and whoever's key is revoked, never comes back with that key.
    """
    from privfm_cli.papers import check_free, read_roster, write_paper

    old = None if previous is None else read_roster(previous)
    cards, revocations = _sorted_papers(papers or [])
    roster = _made(federation, old, cards, revocations, remove or [], replace or [])
    path = out or Path(f"roster-{roster.version}.json")
    check_free(path)
    write_paper(path, roster.to_json())
    if len(roster.members) < FEWEST:
        say(f"privfm: warning: a federation needs {FEWEST} hospitals or more; this roster has {len(roster.members)}")
    if as_json:
        show_json({**_facts(roster), "roster": str(path)})
        return
    _show_roster(roster)
    _show_changes(old, roster)
    show(f"written to {path}")
    show("Next")
    follows = "" if previous is None else f" --previous {shlex.quote(str(previous))}"
    show(f"  Telephone every hospital: compare its own fingerprint, and read it the roster's. Send it {path}.")
    show(f"  It says: privfm roster check {shlex.quote(str(path))}{follows} --key CARD --fingerprint '12345 ...'")


@commands.command("check")
def check(
    file: RosterFile,
    previous: Annotated[
        Path | None, typer.Option("--previous", metavar="ROSTER", help="The version held so far, which it must follow.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="Your card or identity file, which it must hold.")
    ] = None,
    fingerprint: Annotated[
        str | None,
        typer.Option("--fingerprint", metavar="DIGITS", help="The roster's 40 digits that were read to you."),
    ] = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            "--passphrase-file",
            metavar="FILE",
            help="Of an identity file given with --key.",
            show_default="ask",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that a roster is sound, and is the one that you should use; show its members' fingerprints.

    The exit code is 2 when the file is not sound, and 4 when it does not follow --previous, does not hold --key, or is
    not the one of --fingerprint.
    """
    from privfm_cli.papers import naming, read_roster

    digits = None if fingerprint is None else _digits(fingerprint)
    roster = read_roster(file)
    old = None if previous is None else read_roster(previous)
    mine = None if key is None else _public_half(key, passphrase_file)
    with naming(file):
        _check_follows(old, roster)
        _check_holds(roster, mine)
        _check_fingerprint(roster, digits)
    if as_json:
        checked = {"follows": old is not None, "holds": mine and mine.name, "fingerprint": fingerprint is not None}
        show_json({**_facts(roster), "checked": checked})
        return
    _show_roster(roster)
    _show_changes(old, roster)
    _show_checked(roster, old, mine, fingerprint)


@commands.command("diff")
def diff(
    old_file: Annotated[Path, typer.Argument(metavar="OLD", show_default=False)],
    new_file: Annotated[Path, typer.Argument(metavar="NEW", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show what changes from one roster to another.

    The exit code is 0 when the two are the same or NEW follows OLD, 2 when a file is not sound, and 4 when NEW may not
    take the place of OLD.
    """
    from privfm.secagg.roster import roster_diff
    from privfm_cli.papers import read_roster

    old, new = read_roster(old_file), read_roster(new_file)
    reason = None if new == old else _reason(old, new)
    if as_json:
        verdict = {"same": new == old, "follows": new != old and reason is None, "reason": reason}
        show_json({**verdict, "changes": list(roster_diff(old, new))})
    elif new == old:
        show(f"the same roster: version {old.version} of {old.federation}")
    else:
        _show_changes(old, new)
    if reason is not None:
        raise VerificationError(f"{new_file}: may not take the place of {old_file}: {reason}")


def _sorted_papers(paths: list[Path]) -> tuple[list[Card], list[Revocation]]:
    from privfm.secagg.cards import Card, Revocation
    from privfm_cli.papers import read_paper

    papers = [read_paper(path) for path in paths]
    cards = [paper for paper in papers if isinstance(paper, Card)]
    return cards, [paper for paper in papers if isinstance(paper, Revocation)]


def _made(
    federation: str | None,
    old: Roster | None,
    cards: list[Card],
    revocations: list[Revocation],
    remove: list[str],
    replace: list[str],
) -> Roster:
    from privfm.secagg.enrolment import first_roster, next_roster

    if (federation is None) == (old is None):
        raise InputError("--federation or --previous: give the name for version 1, or the roster that this one follows")
    if old is not None:
        return next_roster(old, cards, revocations, removed=remove, replaced=replace)
    if revocations or remove or replace:
        raise InputError(
            "--federation: version 1 is made from cards alone; revocations, --remove and --replace need --previous"
        )
    return first_roster(federation or "", cards)


def _public_half(path: Path, passphrase_file: Path | None) -> Member:
    from privfm_cli.identity_files import public_half

    return public_half(path, passphrase_file)


def _check_follows(old: Roster | None, new: Roster) -> None:
    if old is not None and (reason := _reason(old, new)):
        raise VerificationError(reason)


def _reason(old: Roster, new: Roster) -> str | None:
    """Why `new` may not take the place of `old`; None when it may."""
    from privfm.secagg.roster import check_successor

    try:
        check_successor(old, new)
    except VerificationError as error:
        return str(error)
    return None


def _check_holds(roster: Roster, mine: Member | None) -> None:
    if mine is None or mine in roster.members:
        return
    if mine.key in roster.revoked:
        raise VerificationError(f"revokes your key, {mine.fingerprint}")
    held = next((member for member in roster.members if member.name == mine.name), None)
    if held is None:
        raise VerificationError(f"has no member {mine.name!r}; send your card to whoever made it")
    raise VerificationError(
        f"holds another key for {mine.name!r}, {held.fingerprint}, not {mine.fingerprint}: do not use it"
    )


def _digits(typed: str) -> str:
    digits = "".join(typed.replace("-", " ").split())
    if len(digits) != 40 or not (digits.isascii() and digits.isdigit()):
        raise InputError("--fingerprint: need all 40 digits, in eight groups of five")
    return digits


def _check_fingerprint(roster: Roster, digits: str | None) -> None:
    if digits is not None and digits != roster.fingerprint.replace(" ", ""):
        raise VerificationError(f"has the fingerprint {roster.fingerprint}, not the one read to you: do not use it")


def _facts(roster: Roster) -> dict[str, Any]:
    from privfm.secagg.identity import fingerprint

    return {
        "federation": roster.federation,
        "version": roster.version,
        "fingerprint": roster.fingerprint,
        "members": [
            {"name": member.name, "fingerprint": member.fingerprint, "key": member.key.hex()}
            for member in roster.members
        ],
        "revoked": [{"fingerprint": fingerprint(key), "key": key.hex()} for key in roster.revoked],
    }


def _show_roster(roster: Roster) -> None:
    members, revoked = len(roster.members), len(roster.revoked)
    counts = f"{members} member{'s' * (members != 1)}, {revoked} key{'s' * (revoked != 1)} revoked"
    show(f"{roster.federation}, version {roster.version}: {counts}")
    columns = [Column("member", right=False), Column("fingerprint", right=False)]
    show_table(columns, [(member.name, member.fingerprint) for member in roster.members])
    show(f"fingerprint of the roster: {roster.fingerprint}")


def _show_changes(old: Roster | None, new: Roster) -> None:
    from privfm.secagg.roster import roster_diff

    if old is None:
        return
    show("Changes")
    for line in roster_diff(old, new):
        show(f"  {line}")


def _show_checked(roster: Roster, old: Roster | None, mine: Member | None, fingerprint: str | None) -> None:
    show("Checked")
    show("  the file is sound")
    if old is not None:
        show(f"  it follows version {old.version}")
    if mine is not None:
        show(f"  it holds your key, as {mine.name}")
    if fingerprint is not None:
        show("  it is the roster that was read to you")
    else:
        show("  NOT that others hold the same one: compare the roster's fingerprint by telephone")
