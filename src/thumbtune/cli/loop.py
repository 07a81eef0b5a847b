"""`thumbtune cycle`, `canary` and `forget`: the loop from the command line."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from thumbtune.cli.progress import stage
from thumbtune.cli.store import ACTOR, DEFAULT_STORE, AsJson, StoreUrl, open_store, print_table

CYCLE_EXAMPLES = """
[bold]Examples[/bold]

  thumbtune cycle --model packaged:smollm2-135m-instruct --dry-run

  thumbtune cycle --config loop.toml --store postgresql://votes@db/votes

  thumbtune cycle --config loop.toml --watch 600

Exit status: 0 a candidate was trained and judged, 3 nothing to do yet, 1 the turn failed (the champion stays).
Killed, the same command goes on.
"""

NOTHING_TO_DO = 3

canary = typer.Typer(help="The candidate that is tried on a share of users.", no_args_is_help=True)


def cycle(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Base model, the one that is served.", show_default=False),
    ] = None,
    url: StoreUrl = DEFAULT_STORE,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML of settings, with the tables curation, training, gate and canary.", show_default=False
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where turns keep what they write (default cycles)", show_default=False),
    ] = None,
    fewest_new_votes: Annotated[
        int | None,
        typer.Option(min=1, help="New votes that a turn is worth (default 100)", show_default=False),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Who judges at the gate: taste:brevity:24 or check:file.py:function.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")
    ] = False,
    watch: Annotated[
        int | None,
        typer.Option(min=1, metavar="SECONDS", help="Stay, and look again so often.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """One turn of the loop: enough new votes? Then snapshot, train, gate, and a canary beside the champion.

    The champion itself changes when votes on the canary show it better; `thumbtune serve` watches that.
    """
    from thumbtune.loop.cycle import plan_cycle, run_cycle
    from thumbtune.loop.judging import open_judge
    from thumbtune.loop.settings import read_loop_settings

    settings = read_loop_settings(
        config, model=model, folder=folder, fewest_new_votes=fewest_new_votes, judge=judge
    )
    opened = open_judge(settings.judge)
    store = open_store(url)
    if dry_run:
        plan = plan_cycle(store, settings)
        _tell(plan, as_json, "\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in plan.items()))
        return
    while True:
        done = run_cycle(
            store, settings, on_step=lambda name: stage(f"Cycle: {name}", quiet=as_json), judge=opened
        )
        if done is None:
            _tell(
                {"cycle": None, "outcome": "a canary runs"}, as_json, "a canary runs: thumbtune canary status"
            )
        else:
            _tell(_describe(done), as_json, f"cycle {done.id} {done.state}: {done.outcome}")
        if watch is None:
            break
        time.sleep(watch)
    if done is not None and done.state == "failed":
        raise typer.Exit(1)
    if done is None or "train" not in done.steps:
        raise typer.Exit(NOTHING_TO_DO)


@canary.command("status")
def status(url: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """The running canary: votes so far, what they show, and what can be told by when."""
    from thumbtune.loop.canary import conclude, forecast, read_rules
    from thumbtune.loop.look import gather
    from thumbtune.store.canaries import find_running_canary

    store = open_store(url)
    running = find_running_canary(store)
    if running is None:
        _tell({"canary": None}, as_json, "no canary runs: thumbtune canary list shows earlier ones")
        return
    rules = read_rules(running.rules)
    seen = gather(store, running, rules)
    verdict = conclude(seen, rules)
    expected = forecast(seen, rules)
    if as_json:
        content = {"canary": asdict(running), "verdict": asdict(verdict)}
        print(json.dumps(content | {"forecast": [asdict(one) for one in expected]}))
        return
    print(f"{running.id}: {running.candidate} on {running.share:.0%} of users for {seen.days:.1f} days")
    print(f"beside {running.champion}")
    print(f"{verdict.action}: {'; '.join(verdict.reasons)}")
    rows = [
        [f"{one.difference:+.0%}", str(one.votes), "" if one.days is None else f"{one.days:.1f} days"]
        for one in expected
    ]
    print_table(["if it differs by", "votes on its answers", "from now"], rows)


@canary.command("list")
def list_all(url: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Every canary, newest first, and how it ended."""
    from thumbtune.store.canaries import list_canaries

    found = list_canaries(open_store(url))
    if as_json:
        print(json.dumps([asdict(one) for one in found]))
        return
    print_table(
        ["canary", "candidate", "state", "share", "why"],
        [[one.id, one.candidate, one.state, f"{one.share:.0%}", _why(one.record)] for one in found],
    )


@canary.command("start")
def start(
    version: Annotated[str, typer.Argument(help="A version from `thumbtune models list`.")],
    config: Annotated[Path | None, typer.Option(help="TOML with a table canary.", show_default=False)] = None,
    url: StoreUrl = DEFAULT_STORE,
) -> None:
    """Try a version on the first share of users, by hand."""
    from thumbtune.loop.look import stage_canary
    from thumbtune.loop.settings import read_canary_rules

    begun = stage_canary(open_store(url), version, read_canary_rules(config), actor=ACTOR)
    print(f"{begun.id}: {version} answers {begun.share:.0%} of users")


@canary.command("stop")
def stop(url: StoreUrl = DEFAULT_STORE) -> None:
    """End the running canary; the champion answers everybody again."""
    from thumbtune.errors import ConfigError
    from thumbtune.store.canaries import end_canary, find_running_canary

    store = open_store(url)
    running = find_running_canary(store)
    if running is None:
        raise ConfigError("no canary runs")
    record = {"verdict": {"action": "stop", "reasons": ["stopped from the command line"], "numbers": {}}}
    end_canary(store, running, "withdrawn", record, actor=ACTOR)
    print(f"{running.id} is withdrawn; champion is {running.champion}")


@canary.command("replay")
def replay_one(
    canary_id: Annotated[str, typer.Argument(help="An id from `thumbtune canary list`.")],
    url: StoreUrl = DEFAULT_STORE,
) -> None:
    """Decide a canary again from its record, and say whether the decision is the same."""
    from thumbtune.errors import ConfigError
    from thumbtune.loop.canary import replay
    from thumbtune.store.canaries import find_canary

    record = find_canary(open_store(url), canary_id).record
    if record is None or "seen" not in record:
        raise ConfigError(f"{canary_id} was not ended by its votes: there is nothing to decide again")
    verdict = replay(record)
    print(f"{verdict.action}: {'; '.join(verdict.reasons)}")
    if verdict.action != record["verdict"]["action"]:
        print(f"it was: {record['verdict']['action']}")
        raise typer.Exit(1)


def forget(
    user_key: Annotated[str, typer.Argument(help="The user's key, as votes show it.")],
    url: StoreUrl = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Erase a user's texts and votes; tells which snapshots and versions learned from them, and what to do about it.

    [bold]Examples[/bold]

      thumbtune forget 5f2c…
    """
    from thumbtune.store.erasure import erase_user

    done = erase_user(open_store(url), user_key, actor=ACTOR)
    if as_json:
        print(json.dumps(asdict(done)))
    if not done.n_completions and not done.n_votes:
        typer.echo(
            f"nothing here is of a user with the key '{user_key}'. A key is not a name: votes show it, and "
            "DELETE /v1/users/NAME?key_id=ID finds it for a name that an API key called its user by",
            err=True,
        )
        raise typer.Exit(1)
    if as_json:
        return
    print(f"erased: {done.n_completions} completions' texts, {done.n_votes} votes")
    for name, found in (("snapshots and exports", done.snapshots), ("model versions", done.versions)):
        print(f"{name} that hold them: {', '.join(found) or 'none'}")
    if done.versions:
        print(
            "These have learned from what is erased now. Later snapshots are without it: to train anew from one that "
            "never saw it, put the parent in service (thumbtune models promote) and run thumbtune cycle. The files of "
            "the snapshots named above still hold the texts: delete them"
        )


def _describe(done: Any) -> dict[str, Any]:
    steps = {name: step.result for name, step in done.steps.items()}
    return {"cycle": done.id, "state": done.state, "outcome": done.outcome, "steps": steps}


def _tell(content: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(content, default=str) if as_json else text)


def _why(record: Any) -> str:
    return "; ".join((record or {}).get("verdict", {}).get("reasons", ()))
