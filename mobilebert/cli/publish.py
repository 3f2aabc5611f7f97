"""Publish trained checkpoints with their cards."""

from __future__ import annotations

import argparse
from pathlib import Path

from mobilebert.util.errors import UserError


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add publish."""
    one = commands.add_parser("publish", help="print the files and cards that the hub would get; --push uploads them")
    one.add_argument("jobs", metavar="STAGE/NAME", nargs="*", help="checkpoints, as finetune/mobilebert/sst2 (default: all)")
    one.add_argument("--study", default="smoke", help="a study's name or file (default smoke)")
    one.add_argument("--results", type=Path, default=Path("results"), help="folder of all results (default results)")
    one.add_argument("--owner", default="OWNER", help="the hub's user or organisation that gets the repositories")
    one.add_argument("--cards", type=Path, metavar="FOLDER", help="write each card to FOLDER/NAME.md too")
    one.add_argument("--push", action="store_true", help="upload the named checkpoints; HF_TOKEN or `hf auth login` gives access")
    one.set_defaults(func=publish)


def publish(options: argparse.Namespace) -> int:
    """Print each checkpoint with its files, and the card of a single one; upload with --push."""
    from mobilebert.jobs.freshness import current_records
    from mobilebert.publishing import hub
    from mobilebert.publishing.card import card
    from mobilebert.publishing.checkpoint import checkpoints
    from mobilebert.study.graph import build_graph
    from mobilebert.study.load import load_study
    from mobilebert.util.files import write_atomically

    if options.push:
        if not options.jobs or options.owner == "OWNER":
            raise UserError("publish: --push needs the checkpoints by name, and --owner")
        hub.check_access()
    study = load_study(options.study)
    graph = build_graph(study)
    found = current_records(options.results, study.name, graph)
    chosen = checkpoints(options.results, found, options.jobs)
    cards = {item.name: card(item, found, graph) for item in chosen}
    for item in chosen:
        hub.check_name(f"{options.owner}/{item.name}")
        item.check()  # all of them, before the first upload
    for item in chosen:
        text = cards[item.name]
        if options.cards:
            write_atomically((options.cards / f"{item.name}.md").resolve(), text.encode())
        print(f"{options.owner}/{item.name}: {item.record.id}")
        sizes = {hub.CARD: len(text.encode())} | {name: path.stat().st_size for name, path in (item.files | item.int8).items()}
        for name, size in sizes.items():
            print(f"  {size:>13,} bytes  {name}")
        if options.push:
            print(f"  uploaded: {hub.push(item, f'{options.owner}/{item.name}', text)}")
    if options.push:
        return 0
    if len(chosen) == 1:
        print(f"\n{cards[chosen[0].name]}")
    print("nothing was uploaded; --push uploads the checkpoints that you name")
    return 0
