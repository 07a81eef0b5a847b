"""`thumbtune export`, `keys`, `models` and `store`: the store from the command line."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

StoreUrl = Annotated[
    str,
    typer.Option(
        "--store", metavar="URL", envvar="THUMBTUNE_STORE", help="SQLite file or postgresql://… address."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_STORE = "thumbtune.db"
ACTOR = "command line"

keys = typer.Typer(help="API keys: made once, shown once.", no_args_is_help=True)
models = typer.Typer(help="Model versions, and the one in service.", no_args_is_help=True)
store = typer.Typer(help="The store: back-up, retention.", no_args_is_help=True)


open_stores = ExitStack()
"""The stores of a command; closed at its end."""


def open_store(url: str, *, must_exist: bool = True) -> Any:
    """The store at an address; one that does not exist is refused, or made."""
    from thumbtune.store.database import Store

    store = Store(url, must_exist=must_exist)
    open_stores.callback(store.close)
    return store


def export(
    out: Annotated[Path, typer.Option(help="File to write: .jsonl or .parquet, or a folder for datasets.")],
    url: StoreUrl = DEFAULT_STORE,
    file_format: Annotated[
        Literal["jsonl", "parquet", "dataset"] | None,
        typer.Option("--format", help="By the ending of --out, unless given.", show_default=False),
    ] = None,
    kinds: Annotated[
        str, typer.Option(help="Kinds of votes: explicit, edit, retry, copy; with commas.")
    ] = "explicit",
    model_version: Annotated[
        str | None, typer.Option(help="Only votes on this version.", show_default=False)
    ] = None,
    half_life_days: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="A vote this much older than the newest one weighs half.", show_default=False
        ),
    ] = None,
    most_votes_of_one: Annotated[
        int | None,
        typer.Option(min=1, help="One user's votes weigh together at most as this many.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the current votes as rows to train on; what cannot be used is counted by reason.

    [bold]Examples[/bold]

      thumbtune export --out thumbs.jsonl

      thumbtune export --store postgresql://votes@db/votes --out thumbs.parquet --kinds explicit,edit

      thumbtune export --out thumbs.jsonl --half-life-days 30 --most-votes-of-one 20
    """
    from thumbtune.errors import ConfigError
    from thumbtune.store.export import KINDS, Weighing, export_votes
    from thumbtune.store.reading import VoteFilter

    chosen = tuple(kind.strip() for kind in kinds.split(","))
    unknown = [kind for kind in chosen if kind not in KINDS]
    if unknown:
        raise ConfigError(f"--kinds: there is no kind '{unknown[0]}': {', '.join(KINDS)}")
    done = export_votes(
        open_store(url),
        out,
        file_format=file_format,
        wanted=VoteFilter(kinds=chosen, model_version=model_version),
        weighing=Weighing(half_life_days, most_votes_of_one),
    )
    if as_json:
        print(json.dumps(asdict(done) | {"path": str(done.path)}))
        return
    print(
        f"{done.path}: {done.n_rows} rows, {done.n_up} 👍 and {done.n_rows - done.n_up} 👎, digest {done.digest[:12]}"
    )
    for reason, count in done.left_out.items():
        print(f"left out: {count} votes, {reason}")
    print(f"next: thumbtune data check {done.path}")


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is: a product, a team.")],
    role: Annotated[
        Literal["client", "voter", "admin"],
        typer.Option(help="client: chats and votes on its own; voter: votes on all; admin: everything."),
    ] = "client",
    speaks_for_users: Annotated[
        bool, typer.Option("--speaks-for-users", help="May name its end user in the header Thumbtune-User.")
    ] = False,
    url: StoreUrl = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Make an API key and print it, this once.

    [bold]Examples[/bold]

      thumbtune keys create shop --role client --speaks-for-users
    """
    from thumbtune.store.keys import create_key

    key, secret = create_key(open_store(url, must_exist=False), name, role, speaks_for_users=speaks_for_users)
    if as_json:
        print(json.dumps(asdict(key) | {"secret": secret}))
        return
    print(f"key {key.id} ({key.role}) of {key.name}; it is shown this once:", file=sys.stderr)
    print(secret)


@keys.command("list")
def list_(
    url: StoreUrl = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Every API key, without its secret."""
    from thumbtune.store.keys import list_keys

    found = list_keys(open_store(url))
    if as_json:
        print(json.dumps([asdict(key) for key in found]))
        return
    print_table(
        ["id", "name", "role", "speaks for users", "made", "revoked"],
        [
            [
                k.id,
                k.name,
                k.role,
                "yes" if k.speaks_for_users else "",
                _day(k.created_us),
                _day(k.revoked_us),
            ]
            for k in found
        ],
    )


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key, from `thumbtune keys list`.")],
    url: StoreUrl = DEFAULT_STORE,
) -> None:
    """The key opens nothing from now on; a running gateway knows it within two seconds."""
    from thumbtune.store.keys import revoke_key

    revoke_key(open_store(url), key_id)
    print(f"key {key_id} is revoked")


@keys.command("rotate-secret")
def rotate_secret(
    secrets: Annotated[Path, typer.Option(help="File of signing secrets, beside the store.")] = Path(
        "thumbtune.secrets.json"
    ),
) -> None:
    """Sign vote tokens and sessions with a fresh secret from the next start on; the two before it still verify."""
    from thumbtune.errors import ConfigError
    from thumbtune.store.secrets import rotate_signing_secret

    if not secrets.is_file():
        raise ConfigError(f"{secrets}: there are no secrets here: name the gateway's file by --secrets")
    print(f"{rotate_signing_secret(secrets)} secrets verify, the newest signs: restart the gateway")


@models.command("list")
def list_models(
    url: StoreUrl = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Every model version, with its parent and its votes."""
    from thumbtune.store.models import find_pointer, list_versions
    from thumbtune.store.reading import count_by_version

    opened = open_store(url)
    counts = {row["model_version"]: row for row in count_by_version(opened)}
    champion = find_pointer(opened)
    found = list_versions(opened)
    if as_json:
        rows = [asdict(v) | counts.get(v.version, {}) for v in found]
        print(json.dumps({"versions": rows, "champion": asdict(champion) if champion else None}))
        return
    table = []
    for v in found:
        n = counts.get(v.version, {})
        in_service = "champion" if champion is not None and champion.version == v.version else ""
        table.append(
            [
                v.version,
                v.kind,
                v.parent or "",
                in_service,
                *(str(n.get(c, 0)) for c in ("n_completions", "n_up", "n_down")),
            ]
        )
    print_table(["version", "kind", "parent", "", "completions", "👍", "👎"], table)


@models.command("promote")
def promote(
    version: Annotated[str, typer.Argument(help="A version from `thumbtune models list`.")],
    url: StoreUrl = DEFAULT_STORE,
) -> None:
    """Put a version in service; a running gateway that has it loaded follows within two seconds."""
    from thumbtune.store.models import point

    pointer = point(open_store(url), version, actor=ACTOR)
    _tell_champion(pointer)


@models.command("rollback")
def rollback(url: StoreUrl = DEFAULT_STORE) -> None:
    """Put the previous version back in service."""
    from thumbtune.store.models import point_back

    pointer = point_back(open_store(url), actor=ACTOR)
    _tell_champion(pointer)


@models.command("show")
def show(
    version: Annotated[str, typer.Argument(help="A version from `thumbtune models list`.")],
    url: StoreUrl = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """One version: its line of parents, the snapshot and votes behind it, its metrics, and the votes on it."""
    from thumbtune.store.models import trace_lineage
    from thumbtune.store.reading import count_by_version

    opened = open_store(url)
    lineage = trace_lineage(opened, version)
    counts = {row["model_version"]: row for row in count_by_version(opened)}
    if as_json:
        print(json.dumps([asdict(one) | counts.get(one.version, {}) for one in lineage]))
        return
    newest = lineage[0]
    print(f"{newest.version}: {newest.kind}, {newest.location}, made {_day(newest.created_us)}")
    print(f"snapshot {newest.snapshot or 'none'}")
    for name, value in newest.metrics.items():
        print(f"{name}: {json.dumps(value, ensure_ascii=False)}")
    rows = [
        [one.version, one.kind, (one.snapshot or "")[:12], *_thumbs(counts.get(one.version, {}))]
        for one in lineage
    ]
    print_table(["version, then its parents", "kind", "snapshot", "👍", "👎"], rows)


@models.command("export")
def export_version(
    version: Annotated[str, typer.Argument(help="A version from `thumbtune models list`.")],
    out: Annotated[Path, typer.Option(help="New folder to write.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Base model, where the adapter names none.", show_default=False),
    ] = None,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Also a GGUF file, by llama.cpp's converter where it is installed.")
    ] = False,
    url: StoreUrl = DEFAULT_STORE,
) -> None:
    """Write a version as one merged model in safetensors, for whatever loads no adapters.

    [bold]Examples[/bold]

      thumbtune models export adapter-3-5f2c9a1b0d3e --out merged/
    """
    from thumbtune.loop.merging import export_merged
    from thumbtune.store.models import find_version

    for path in export_merged(find_version(open_store(url), version), out, base=model, gguf=gguf):
        print(path)


@store.command("backup")
def backup(
    out: Annotated[Path, typer.Option(help="New file to write.")],
    url: StoreUrl = DEFAULT_STORE,
) -> None:
    """Copy the store as of this moment, while it is in use. The secrets file is to be kept apart from it."""
    from thumbtune.store.backup import back_up

    back_up(open_store(url), out)
    print(f"{out}: {out.stat().st_size:,} bytes")


@store.command("retain")
def retain(
    voted_days: Annotated[
        float | None,
        typer.Option(min=0, help="Keep texts that were voted on so many days.", show_default=False),
    ] = None,
    unvoted_days: Annotated[
        float | None, typer.Option(min=0, help="Keep texts without a vote so many days.", show_default=False)
    ] = None,
    url: StoreUrl = DEFAULT_STORE,
) -> None:
    """Erase texts that are older than they may be; votes and counts stay. For cron."""
    from thumbtune.errors import ConfigError
    from thumbtune.store.erasure import apply_retention

    if voted_days is None and unvoted_days is None:
        raise ConfigError("say how long: --voted-days, --unvoted-days or both")
    counts = apply_retention(open_store(url), voted_days=voted_days, unvoted_days=unvoted_days, actor=ACTOR)
    print(f"erased texts: {counts['voted']} voted on, {counts['unvoted']} without a vote")


def _tell_champion(pointer: Any) -> None:
    before = "" if pointer.previous is None else f", before it {pointer.previous}"
    print(f"champion is {pointer.version}{before}")


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """To the terminal, nothing cut."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")  # a name that is cut cannot be copied
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _thumbs(counts: dict[str, Any]) -> tuple[str, str]:
    return str(counts.get("n_up", 0)), str(counts.get("n_down", 0))


def _day(us: int | None) -> str:
    import datetime

    return (
        ""
        if us is None
        else datetime.datetime.fromtimestamp(us / 1e6, datetime.UTC).strftime("%Y-%m-%d %H:%M")
    )
